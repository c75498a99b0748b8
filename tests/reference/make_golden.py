"""Makes a golden checkpoint: random weights of an architecture, and what transformers computes with them.

    python make_golden.py NAME [NAME ...]     one of CASES below, into ../golden/tiny/NAME
    python make_golden.py --list

Run with transformers 5.23.0, torch 2.15.0 (CPU, eager attention) and safetensors 0.8.0. The weights are rounded
to bfloat16, so that what is stored is exact, and everything is computed in float64.

What is made, in the layout of the hub: config.json, model.safetensors, and
  golden.safetensors   logits [40, vocab], batch_logits [2, 20, vocab], float32
  golden.json          tokens, batch, and runs: greedy decodes under the rules token, moi and direct, fed through
                       a cache; each is cut where transformers' own float32 leaves its float64, because a
                       random network under a mixing rule can be chaotic, and where the last of the
                       support's tokens is all but tied with the next. Standard decoding is compared with
                       transformers' `generate`.
A new architecture is one more entry in CASES, and its name in CHECKPOINTS of ../tests/golden.rs.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB, STEPS, PROMPT = 256, 24, 11
# Prompts of cases whose rotary frequencies depend on the length: within the original context, so that the
# decode crosses it, and beyond.
PROMPTS = {"phi3-longrope-beyond": [11, 20], "llama-longrope-beyond": [11, 20], "llama-dynamic": [11, 36]}
COMMON = dict(
    vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    initializer_range=0.18,
)
GEMMA = dict(COMMON, head_dim=16, initializer_range=0.2)
NEOX = dict(
    vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=512, bos_token_id=1, eos_token_id=2, initializer_range=0.25,
)
# Options that the plain fixtures of each architecture leave at their defaults.
CASES = {
    "qwen2-sliding": ("qwen2", dict(
        COMMON, use_sliding_window=True, sliding_window=9, max_window_layers=1, rope_theta=1e6)),
    "qwen3-moe-dense": ("qwen3_moe", dict(
        COMMON, head_dim=32, moe_intermediate_size=48, num_experts=6, num_experts_per_tok=3,
        norm_topk_prob=False, decoder_sparse_step=2, attention_bias=True)),
    "gemma3-linear": ("gemma3_text", dict(
        GEMMA, num_hidden_layers=4, layer_types=[
            "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        sliding_window=7, query_pre_attn_scalar=24, final_logit_softcapping=20.0, rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}})),
    "gemma2-caps": ("gemma2", dict(
        GEMMA, sliding_window=5, query_pre_attn_scalar=40, attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0, rope_theta=500.0)),
    "phi3-longrope": ("phi3", dict(
        COMMON, hidden_size=96, max_position_embeddings=512, original_max_position_embeddings=64,
        partial_rotary_factor=0.75, sliding_window=13, rope_scaling={
            "rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(9)],
            "long_factor": [1.0 + 0.7 * i for i in range(9)]})),
    "phi3-longrope-beyond": ("phi3", dict(
        COMMON, hidden_size=96, max_position_embeddings=512, original_max_position_embeddings=16, rope_scaling={
            "rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(12)],
            "long_factor": [1.0 + 0.7 * i for i in range(12)]})),
    "llama-longrope-beyond": ("llama", dict(
        COMMON, attention_bias=True, mlp_bias=True, max_position_embeddings=512, rope_scaling={
            "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0 + 0.5 * i for i in range(8)],
            "original_max_position_embeddings": 12, "factor": 16.0})),
    "llama-dynamic": ("llama", dict(
        COMMON, max_position_embeddings=32, rope_scaling={"rope_type": "dynamic", "factor": 4.0})),
    "llama-yarn": ("llama", dict(
        COMMON, rope_theta=1e4, rope_scaling={
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 16,
            "beta_slow": 2, "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False})),
    "smollm3-sliding": ("smollm3", dict(
        COMMON, num_hidden_layers=4, no_rope_layer_interval=3, use_sliding_window=True, sliding_window=6,
        attention_bias=True, mlp_bias=True)),
    "granite-tied": ("granite", dict(
        COMMON, tie_word_embeddings=True, embedding_multiplier=12.0, attention_multiplier=0.2,
        residual_multiplier=0.3, logits_scaling=8.0, attention_bias=True, mlp_bias=True)),
    "gpt2-scales": ("gpt2", dict(
        vocab_size=VOCAB, n_embd=64, n_head=4, n_layer=3, n_positions=64, n_inner=96, bos_token_id=1,
        eos_token_id=2, initializer_range=0.25, scale_attn_by_inverse_layer_idx=True,
        activation_function="relu")),
    "gpt-neox-sequential": ("gpt_neox", dict(
        NEOX, use_parallel_residual=False, hidden_act="gelu_new", attention_bias=False, rope_parameters={
            "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5})),
    "olmo2-bias": ("olmo2", dict(COMMON, attention_bias=True, rope_theta=5e5)),
    "mixtral-sliding": ("mixtral", dict(
        COMMON, num_local_experts=5, num_experts_per_tok=3, sliding_window=8, hidden_act="gelu")),
}


def rules():
    yield "token", None, None
    for support in ["full", 20]:
        for beta in [0.5, 1.0, 4.0]:
            yield "moi", beta, support
        yield "direct", None, support


def forget_length(model):
    """Dynamic rotary frequencies stay those of the longest sequence seen, until a short one comes."""
    model(torch.tensor([[3]]), use_cache=False)


def decode(model, prompt, rule, beta, support):
    """Greedy; what is fed back at step i is the mixture of step i's distribution, in float64."""
    forget_length(model)
    dtype = next(model.parameters()).dtype
    table = model.get_input_embeddings()(torch.arange(VOCAB)).double()
    # Gemma's embedding layer scales its rows; Granite multiplies what it is given, mixtures too.
    inputs, cache, steps = model.get_input_embeddings()(torch.tensor([prompt])), None, []
    fed = []
    for _ in range(STEPS):
        fed.append(inputs)
        total = sum(part.shape[1] for part in fed)
        # As Phi3ForCausalLM.prepare_inputs_for_generation, for inputs that are embeddings.
        original = getattr(model.config, "original_max_position_embeddings", None)
        if cache is not None and model.config.model_type == "phi3" and original is not None:
            if total >= original + 1 and total - inputs.shape[1] <= original:
                inputs, cache = torch.cat(fed, 1), None
        out = model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1].double()
        best, second = logits.topk(2)[0].tolist()
        token = int(logits.argmax())
        p = logits.softmax(-1)
        size = VOCAB if support in (None, "full") else support
        q, index = p.topk(size)
        q = q / q.sum()
        entropy = float(-(q * q.clamp_min(1e-300).log()).sum() / math.log(size))
        gate = {"token": 0.0, "direct": 1.0}.get(rule, entropy / ((beta or 0) + 1))
        row = table[token] + gate * ((q[:, None] * table[index]).sum(0) - table[token])
        inputs = row.to(dtype)[None, None]
        steps.append(dict(token=token, entropy=entropy, gate=gate, margin=best - second))
        if size < VOCAB and float(1 - p.topk(size + 1)[0][-1] / p.topk(size)[0][-1]) < 1e-4:
            break  # which token is the last of the support is a matter of rounding
    return steps


def agreed(steps, single):
    """How many steps float32 decodes like float64."""
    for i, (a, b) in enumerate(zip(steps, single)):
        if a["token"] != b["token"] or abs(a["entropy"] - b["entropy"]) > 2e-5:
            return i
    return min(len(steps), len(single))


@torch.no_grad()
def make(name, target):
    model_type, fields = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    config = AutoConfig.for_model(model_type, **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager").eval()
    for parameter_name, parameter in model.named_parameters():
        # Biases and norms begin as zeros and ones: make them count.
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        parameter.copy_(parameter.to(torch.bfloat16).to(parameter.dtype))
    target.mkdir(parents=True, exist_ok=True)
    # A copy: the conversion rounds the rotary frequencies too.
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(target)
    (target / "generation_config.json").unlink(missing_ok=True)
    single = model
    generator = torch.Generator().manual_seed(7)
    draw = lambda count: torch.randint(3, VOCAB, (count,), generator=generator).tolist()
    tokens, batch = draw(40), [draw(20), draw(20)]
    runs = []
    cases = [(tokens[:length], *rule) for length in PROMPTS.get(name, [PROMPT]) for rule in rules()]
    singles = [decode(single, *case) for case in cases]
    double = model.double()
    for (prompt, rule, beta, support), in_single in zip(cases, singles):
        steps = decode(double, prompt, rule, beta, support)
        if rule == "token":
            forget_length(double)
            generated = double.generate(
                torch.tensor([prompt]), max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0)
            assert generated[0, len(prompt):].tolist() == [step["token"] for step in steps], name
        steps = steps[: agreed(steps, in_single)]
        if steps:
            runs.append(dict(rule=rule, beta=beta, support=support, prompt=prompt, steps=steps))
    forget_length(double)
    logits = lambda ids: double(torch.tensor(ids), use_cache=False).logits.float().contiguous()
    save_file({"logits": logits([tokens])[0].contiguous(), "batch_logits": logits(batch)},
              target / "golden.safetensors")
    (target / "golden.json").write_text(json.dumps(dict(tokens=tokens, batch=batch, runs=runs), indent=1) + "\n")
    print(f"{name}: {sum(len(run['steps']) for run in runs)} steps in {len(runs)} runs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.list:
        print("\n".join(CASES))
    for name in args.names:
        make(name, Path(__file__).parent.parent / "golden" / "tiny" / name)
