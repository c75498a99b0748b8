"""Writes blocks.gguf: random values in every block format, and what the `gguf` package dequantises them to.

Run with gguf 0.19.0 and numpy 2.4.6: python make_blocks.py blocks.gguf
"""

import sys

import gguf
import numpy as np

rng = np.random.default_rng(20)
writer = gguf.GGUFWriter(sys.argv[1], "test")
writer.add_uint32("test.unsigned", 7)
writer.add_int32("test.signed", -7)
writer.add_float32("test.float", 0.25)
writer.add_bool("test.bool", True)
writer.add_string("test.string", "naïve")
writer.add_array("test.strings", ["a", "bc", ""])
writer.add_array("test.numbers", [1, 2, 3])

kinds = gguf.GGMLQuantizationType
for kind in [
    kinds.F32, kinds.F16, kinds.BF16, kinds.Q8_0, kinds.Q4_0, kinds.Q4_1, kinds.Q5_0, kinds.Q5_1, kinds.MXFP4
]:
    values = rng.normal(size=(3, 64)).astype(np.float32)
    values[1] *= 1e-3
    values[2, :32] = 0
    values[2, 32:] = np.linspace(-5, 11, 32)
    data = gguf.quants.quantize(values, kind)
    writer.add_tensor(kind.name, data, raw_dtype=kind)
    if kind in [kinds.Q8_0, kinds.Q4_0, kinds.Q4_1]:
        writer.add_tensor(f"{kind.name}.input", values, raw_dtype=kinds.F32)
    expected = gguf.quants.dequantize(data, kind).astype(np.float32)
    writer.add_tensor(f"{kind.name}.expected", expected, raw_dtype=kinds.F32)

# Raw bytes: every byte value in every position of a block, with float16 scales that are numbers; where those
# scales stand in a block is the table here.
SCALES = {
    kinds.Q8_0: [0], kinds.Q4_0: [0], kinds.Q4_1: [0, 2], kinds.Q5_0: [0], kinds.Q5_1: [0, 2],
    kinds.Q2_K: [80, 82], kinds.Q3_K: [108], kinds.Q4_K: [0, 2], kinds.Q5_K: [0, 2], kinds.Q6_K: [208],
    kinds.IQ4_NL: [0], kinds.IQ4_XS: [0], kinds.MXFP4: [],
}
for kind, places in SCALES.items():
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = 64 if size < 64 else 24
    data = rng.integers(0, 256, size=(blocks, size), dtype=np.uint8)
    for place in places:
        scales = rng.normal(size=(blocks, 1)).astype(np.float16)
        data[:, place : place + 2] = scales.view(np.uint8)
    if kind == kinds.MXFP4:
        # Exponents: the subnormal ones, and all that stay finite.
        data[:, 0] = np.concatenate([[0, 1, 2], rng.integers(3, 250, size=blocks - 3)])
    writer.add_tensor(f"{kind.name}.raw", data, raw_dtype=kind)
    expected = gguf.quants.dequantize(data, kind).astype(np.float32)
    writer.add_tensor(f"{kind.name}.raw.expected", expected, raw_dtype=kinds.F32)

# The formats that came later, behind the others so that those keep their bytes.
LATER = {
    kinds.IQ1_S: [0], kinds.IQ1_M: [], kinds.IQ2_XXS: [0], kinds.IQ2_XS: [0], kinds.IQ2_S: [0], kinds.IQ3_XXS: [0],
    kinds.IQ3_S: [0], kinds.TQ1_0: [52], kinds.TQ2_0: [64], kinds.NVFP4: [],
}
for kind, places in LATER.items():
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = 6
    data = rng.integers(0, 256, size=(blocks, size), dtype=np.uint8)
    scales = rng.normal(size=(blocks, 1)).astype(np.float16)
    for place in places:
        data[:, place : place + 2] = scales.view(np.uint8)
    if kind == kinds.IQ1_M:
        # The four nibbles of the scale are the highest ones of four numbers of 16 bits.
        for i in range(4):
            nibbles = (scales.view(np.uint16)[:, 0] >> (4 * i) & 15).astype(np.uint8)
            data[:, 49 + 2 * i] = data[:, 49 + 2 * i] & 15 | nibbles << 4
    if kind == kinds.NVFP4:
        # The scales that are subnormal, zero, no number, and the largest.
        data[0, :4] = [0, 0x7F, 3, 0x7E]
    writer.add_tensor(f"{kind.name}.raw", data, raw_dtype=kind)
    expected = gguf.quants.dequantize(data, kind).astype(np.float32)
    assert np.isfinite(expected).all()
    writer.add_tensor(f"{kind.name}.raw.expected", expected, raw_dtype=kinds.F32)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
