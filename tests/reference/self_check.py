"""Computes the known logits of the built-in model of `moi_engine::self_check`, in float64 with numpy alone.

    python self_check.py > ../../crates/engine/src/self_check/known.json

The model is a Gemma 2 of random weights (norms around, caps on scores and logits, every other layer with a sliding
window, grouped queries): between them its layers use every kind of kernel that decoding needs. Weights are bytes of
splitmix64, seeded by the FNV-1a hash of the parameter's name and scaled by 2^-10: exact in bfloat16 and float16.
Written with numpy 2.4.
"""

import json

import numpy as np

CONFIG = dict(
    model_type="gemma2", vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=32, sliding_window=16, query_pre_attn_scalar=32,
    attn_logit_softcapping=8.0, final_logit_softcapping=6.0, rope_theta=10000.0, rms_norm_eps=1e-6,
    max_position_embeddings=128,
)
TOKENS = [(37 * i + 11) % CONFIG["vocab_size"] for i in range(40)]
# What is written: logits of these positions at these tokens.
FIRST, EVERY = 27, 8


def splitmix64(state):
    with np.errstate(over="ignore"):
        z = state + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def weight(name, *shape):
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        words = splitmix64(np.uint64(seed) + np.arange(np.prod(shape), dtype=np.uint64))
    return ((words >> np.uint64(56)).astype(np.uint8).view(np.int8) / 1024.0).reshape(shape)


def norm(x, name):
    scaled = x / np.sqrt((x * x).mean(-1, keepdims=True) + CONFIG["rms_norm_eps"])
    return scaled * (1.0 + weight(name + ".weight", x.shape[-1]))


def rotate(x):
    """Rotary positions on [heads, seq, head_dim], halves paired."""
    _, seq, dims = x.shape
    frequency = CONFIG["rope_theta"] ** (-np.arange(0, dims, 2) / dims)
    angle = np.outer(np.arange(seq), frequency)
    cos, sin = np.tile(np.cos(angle), 2), np.tile(np.sin(angle), 2)
    low, high = np.split(x, 2, -1)
    return x * cos + np.concatenate([-high, low], -1) * sin


def attention(x, prefix, window):
    heads, kv, dims = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
    seq, d = x.shape

    def project(name, count):
        projected = x @ weight(f"{prefix}.{name}.weight", count * dims, d).T
        return projected.reshape(seq, count, dims).transpose(1, 0, 2)

    q, k, v = rotate(project("q_proj", heads)), rotate(project("k_proj", kv)), project("v_proj", kv)
    k, v = (np.repeat(t, heads // kv, 0) for t in (k, v))
    cap = CONFIG["attn_logit_softcapping"]
    scores = q @ k.transpose(0, 2, 1) * CONFIG["query_pre_attn_scalar"] ** -0.5
    scores = cap * np.tanh(scores / cap)
    query, key = np.arange(seq)[:, None], np.arange(seq)[None]
    seen = (key <= query) & (key > query - window)
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out = (p / p.sum(-1, keepdims=True)) @ v
    return out.transpose(1, 0, 2).reshape(seq, heads * dims) @ weight(f"{prefix}.o_proj.weight", d, heads * dims).T


def feed_forward(x, prefix):
    inner, d = CONFIG["intermediate_size"], x.shape[-1]
    gate = x @ weight(f"{prefix}.gate_proj.weight", inner, d).T
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gelu * (x @ weight(f"{prefix}.up_proj.weight", inner, d).T)) @ weight(f"{prefix}.down_proj.weight", d, inner).T


def logits():
    d = CONFIG["hidden_size"]
    table = weight("model.embed_tokens.weight", CONFIG["vocab_size"], d)
    x = table[TOKENS] * np.sqrt(d)
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        window = CONFIG["sliding_window"] if layer % 2 == 0 else len(TOKENS)
        attended = attention(norm(x, f"{prefix}.input_layernorm"), f"{prefix}.self_attn", window)
        x = x + norm(attended, f"{prefix}.post_attention_layernorm")
        fed = feed_forward(norm(x, f"{prefix}.pre_feedforward_layernorm"), f"{prefix}.mlp")
        x = x + norm(fed, f"{prefix}.post_feedforward_layernorm")
    cap = CONFIG["final_logit_softcapping"]
    return cap * np.tanh(norm(x, "model.norm") @ table.T / cap)


rows = logits()[FIRST:, ::EVERY]
print(json.dumps({
    "config": CONFIG, "tokens": TOKENS, "first": FIRST, "every": EVERY,
    "logits": [[round(float(value), 7) for value in row] for row in rows],
}))
