"""Writes golden checkpoints as GGUF files with llama.cpp's own converter.

    python make_gguf.py LLAMA_CPP [NAME ...]    into ../golden/gguf/NAME.gguf; all of NAMES where none is given

LLAMA_CPP is a source tree of llama.cpp that holds convert_hf_to_gguf.py; the files here were made with the one in
llama-cpp-python 0.3.9 (vendor/llama.cpp), transformers 5.23.0, torch 2.15.0 and numpy 2.4.6. It knows the
spelling of config.json from before transformers 5, so newer ones are respelled first. The checkpoints have no
tokenizer, so none is written.

Two departures: llama3 scaling gets its `rope_freqs` here, because that converter takes the original context to be
8192; `deci` is nemotron-nas without the linear map of its layer 4, which the format cannot hold.
"""

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

NAMES = [
    "llama", "llama3-rope", "mixtral", "qwen2", "qwen2-yarn", "qwen3", "qwen3-moe", "gemma", "gemma2", "gemma3",
    "phi3", "phi3-longrope", "olmo2", "granite", "gpt2", "gpt-neox", "deci",
]

llama_cpp = Path(sys.argv[1])
sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
import convert_hf_to_gguf as converter  # noqa: E402
import gguf  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

ROOT = Path(__file__).parent.parent / "golden"


def respelled(config):
    """The spelling from before transformers 5."""
    rope = config.pop("rope_parameters", None)
    if rope and "full_attention" in rope:
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    elif rope:
        config["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    if config.get("rope_scaling"):
        config["rope_scaling"]["type"] = config["rope_scaling"]["rope_type"]
    if "num_local_experts" in config and config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    if config.get("head_dim", 0) is None:
        del config["head_dim"]
    return config


def llama3_factors(config):
    scaling = config["rope_scaling"]
    count = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]) // 2
    original = scaling["original_max_position_embeddings"]
    for i in range(count):
        turns = original / (2 * math.pi * config["rope_theta"] ** (i / count))
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = min(max((turns - low) / (high - low), 0), 1)
        yield 1 / ((1 - smooth) / scaling["factor"] + smooth)


def convert(name, directory):
    source = ROOT / "tiny" / ("nemotron-nas" if name == "deci" else name)
    config = respelled(json.loads((source / "config.json").read_text()))
    weights = {}
    for file in source.glob("model*.safetensors"):
        weights.update(load_file(file))
    if name == "deci":
        config["block_configs"][4]["ffn"].update(replace_with_linear=False, no_op=True)
        weights = {key: value for key, value in weights.items()
                   if not key.startswith(("model.layers.4.mlp.", "model.layers.4.post_attention_layernorm."))}
    (directory / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in weights.items()}, directory / "model.safetensors",
              metadata={"format": "pt"})

    kind = converter.ModelBase.from_model_architecture(config["architectures"][0])
    kind.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("none")
    # Gemma 3's rows are cut to as many as there are tokens.
    kind._create_vocab_sentencepiece = lambda self: ([b""] * config["vocab_size"], [], [])
    target = ROOT / "gguf" / f"{name}.gguf"
    # float32 keeps bfloat16 and float16 weights exactly; bfloat16 is smaller.
    ftype = gguf.LlamaFileType.ALL_F32 if name in ("llama", "gpt2") else gguf.LlamaFileType.MOSTLY_BF16
    model = kind(directory, ftype, target, hparams=config)
    if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        factors = np.array(list(llama3_factors(config)), dtype=np.float32)
        model.generate_extra_tensors = lambda: [
            ("rope_freqs.weight", converter.torch.from_numpy(factors))]
    model.write()


(ROOT / "gguf").mkdir(exist_ok=True)
for name in sys.argv[2:] or NAMES:
    with tempfile.TemporaryDirectory() as directory:
        convert(name, Path(directory))
