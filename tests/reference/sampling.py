#!/usr/bin/env python3
"""Writes how transformers samples by a `generation_config.json`: the logits processors that `generate` makes of it, and the
numbers they hold. crates/pretrained/src/sampling.json, replayed by a test of crates/pretrained/src/sampling.rs.

Needs torch and transformers (used: 2.15.0, 5.24.0).
"""

import json
import pathlib

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

FILE = pathlib.Path(__file__).parents[2] / "crates/pretrained/src/sampling.json"

SAMPLES = {"do_sample": True}
ROWS = [
    {},
    SAMPLES,
    {"do_sample": False, "temperature": 0.7, "top_p": 0.8},
    {"temperature": 0.7},
    {**SAMPLES, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
    {**SAMPLES, "temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0.05},
    {**SAMPLES, "temperature": 1.0, "top_k": 64, "top_p": 0.95},
    {**SAMPLES, "typical_p": 0.9},
    {**SAMPLES, "typical_p": 1.0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0},
    {**SAMPLES, "no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    {"no_repeat_ngram_size": 0, "repetition_penalty": 1.0},
    {"repetition_penalty": 0.9},
    {"suppress_tokens": [5, 7]},
    {"suppress_tokens": []},
    {"bad_words_ids": [[9], [11]]},
    {"bad_words_ids": [[9, 10], [11]]},
    {"bad_words_ids": [[2], [9]], "eos_token_id": 2},
    {**SAMPLES, "epsilon_cutoff": 3e-4},
    {**SAMPLES, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
    {**SAMPLES, "eta_cutoff": 2e-3},
    {**SAMPLES, "top_h": 0.4},
    {"guidance_scale": 1.0},
    {"guidance_scale": 2.0},
    {"sequence_bias": [[[4, 5], 2.0]]},
    {"begin_suppress_tokens": [3]},
    {"forced_bos_token_id": 3},
    {"forced_eos_token_id": 2, "max_length": 9},
    {"min_new_tokens": 5, "eos_token_id": 2},
    {"min_length": 5, "eos_token_id": 2},
    {"exponential_decay_length_penalty": [10, 1.1], "eos_token_id": 2, "max_length": 64},
    {"max_new_tokens": 100, "pad_token_id": 0, "use_cache": True, "transformers_version": "4.40.0"},
]


def plain(value):
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    return round(value, 12) if isinstance(value, float) else value


def number(processor):
    """What a processor was made with."""
    for name in ["temperature", "top_k", "top_p", "min_p", "mass", "penalty", "ngram_size", "suppress_tokens"]:
        if hasattr(processor, name):
            return plain(getattr(processor, name))
    if hasattr(processor, "bad_word_ids"):
        # Without those that end a generation.
        return [list(word) for word in processor.sequence_bias]
    return None


def main():
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
    rows = []
    for fields in ROWS:
        config = GenerationConfig(**fields)
        config, _ = model._prepare_generation_config(config)
        ids = torch.tensor([[1, 2, 3]])
        model._prepare_special_tokens(config, device="cpu")
        made = model._get_logits_processor(
            config, input_ids_seq_length=3, encoder_input_ids=ids, device="cpu", model_kwargs={})
        rows.append({"config": fields, "processors": {type(one).__name__: number(one) for one in made}})
    head = json.dumps({"written_by": f"tests/reference/sampling.py: transformers {transformers.__version__}"})[:-1]
    FILE.write_text(head + ', "rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n")


if __name__ == "__main__":
    main()
