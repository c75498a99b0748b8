#!/usr/bin/env python3
"""transformers' own generate, eager, on a GPU: the sizes of `moi bench --shape`, random weights, bfloat16.

    python3 benches/peers/eager.py [qwen2-7b qwen2-32b]

Prints a Markdown table of tokens per second: greedy, 64 tokens behind a prompt of 512, the best of three.
`cargo xtask gpu-report --bench` runs it beside `moi bench` on the same machine.
"""

import sys
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen2Config

SHAPES = {
    "qwen2-7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                     num_key_value_heads=4),
    "qwen2-32b": dict(hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40,
                      num_key_value_heads=8),
}
PROMPT, TOKENS, ROUNDS = 512, 64, 3


def seconds(model, batch, tokens):
    ids = torch.arange(batch * PROMPT, device="cuda").reshape(batch, PROMPT) % model.config.vocab_size
    torch.cuda.synchronize()
    begun = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                   do_sample=False, pad_token_id=0)
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def main():
    names = sys.argv[1:] or list(SHAPES)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name()}\n")
    print("| shape | batch | decode tokens/s |\n|---|---:|---:|")
    for name in names:
        config = Qwen2Config(vocab_size=152064, max_position_embeddings=32768, rope_theta=1e6, **SHAPES[name])
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config).eval()
        with torch.inference_mode():
            for batch in (1, 64) if name == "qwen2-7b" else (1,):
                seconds(model, batch, 2)
                # The prompt and the first token apart.
                short = min(seconds(model, batch, 1) for _ in range(ROUNDS))
                long = min(seconds(model, batch, 1 + TOKENS) for _ in range(ROUNDS))
                print(f"| {name} | {batch} | {batch * TOKENS / (long - short):.1f} |", flush=True)
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
