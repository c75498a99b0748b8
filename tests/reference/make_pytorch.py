"""Writes a golden checkpoint's weights as PyTorch files, whole and in two shards.

    python make_pytorch.py

Into ../golden/pytorch/{whole,shards,transposed}, with the config. Made with torch 2.15.0 and safetensors 0.8.0.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent / "golden"
source = ROOT / "tiny" / "gpt-neox-sequential"
weights = load_file(source / "model.safetensors")
# Old checkpoints store masks and frequencies beside the weights.
weights["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
weights["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
# A view whose values do not stand row by row.
directory = ROOT / "pytorch" / "transposed"
directory.mkdir(parents=True, exist_ok=True)
shutil.copy(source / "config.json", directory)
name = "gpt_neox.layers.0.attention.dense.weight"
torch.save({name: weights[name].t()}, directory / "pytorch_model.bin")

for name in ["whole", "shards"]:
    directory = ROOT / "pytorch" / name
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "config.json", directory)
    if name == "whole":
        torch.save(weights, directory / "pytorch_model.bin")
        continue
    names = sorted(weights)
    files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for file, half in zip(files, halves):
        torch.save({key: weights[key].clone() for key in half}, directory / file)
    index = {"metadata": {}, "weight_map": {key: file for file, half in zip(files, halves) for key in half}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
