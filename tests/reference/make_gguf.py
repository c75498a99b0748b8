"""Writes a tiny golden checkpoint as the GGUF file that llama.cpp's converter would make of it.

Rows of Q and K are permuted, tensors renamed, the llama3 rope scaling turned into `rope_freqs.weight`, as
convert_hf_to_gguf.py does. Run with gguf 0.19.0, numpy 2.4.6 and ml_dtypes 0.6.0:

    python make_gguf.py ../golden/tiny/llama3-rope ../golden/gguf/llama3-rope.gguf
"""

import json
import math
import sys
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np

source, target = Path(sys.argv[1]), sys.argv[2]
config = json.loads((source / "config.json").read_text())
heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]


def read(path):
    """Tensors of a safetensors file in float32 (numpy has no bfloat16 of its own)."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for name, info in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in info["data_offsets"])
            dtype = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}[info["dtype"]]
            yield name, np.frombuffer(data[start:end], dtype).reshape(info["shape"]).astype(np.float32)


def permute(weight, heads):
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


writer = gguf.GGUFWriter(target, "llama")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_block_count(config["num_hidden_layers"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(heads)
writer.add_head_count_kv(kv_heads)
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_dimension_count(head_dim)
writer.add_rope_freq_base(config["rope_theta"])
writer.add_vocab_size(config["vocab_size"])

names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
for name, weight in read(source / "model.safetensors"):
    if "q_proj" in name:
        weight = permute(weight, heads)
    if "k_proj" in name:
        weight = permute(weight, kv_heads)
    new = names.get_name(name, try_suffixes=(".weight", ".bias"))
    kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.BF16
    writer.add_tensor(new, gguf.quants.quantize(weight, kind), raw_dtype=kind)

scaling = config["rope_scaling"]
low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
factors = []
for i in range(head_dim // 2):
    wavelength = 2 * math.pi * config["rope_theta"] ** (2 * i / head_dim)
    if wavelength < high:
        factors.append(1)
    elif wavelength > low:
        factors.append(scaling["factor"])
    else:
        smooth = (scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]) / (
            scaling["high_freq_factor"] - scaling["low_freq_factor"]
        )
        factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
