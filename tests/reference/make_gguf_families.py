"""Writes the golden checkpoints of newer families as GGUF files, with llama.cpp's own converter.

    python -O make_gguf_families.py LLAMA_CPP [NAME ...]    into ../golden/gguf/NAME.gguf; all of NAMES where none is given

LLAMA_CPP is a source tree of llama.cpp that holds the package `conversion`; the files here were made with the one in
llama-cpp-python 0.3.36 (vendor/llama.cpp), torch 2.15.0 and transformers 5.24.0. The checkpoints have no tokenizer, so none
is written. `make_gguf.py` is the same for older ones.

Without -O the converter insists on the published sizes of Hunyuan. What is done to a config first is what published ones say and the tiny ones leave out: see `completed`.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

NAMES = [
    "apertus", "deepseek-v2", "deepseek-v3", "ernie4-5-moe", "exaone4", "gemma4", "gemma4-moe", "gemma4-ple", "glm4-moe",
    "glm4-moe-lite", "gpt-oss", "granite-hybrid", "hunyuan-dense", "laguna", "lfm2", "lfm2-moe", "minimax-m2", "ministral3",
    "muse-glimmer", "nemotron-h", "nemotron-h-moe", "olmo3", "phi", "qwen2-5-vl", "qwen3-5", "qwen3-5-moe", "qwen3-next",
    "qwen3-vl", "qwen3-vl-moe", "seed-oss", "deepseek-v32", "glm-moe-dsa", "mistral3",
]

llama_cpp = Path(sys.argv[1])
sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
import conversion  # noqa: E402
import gguf  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

ROOT = Path(__file__).parent.parent / "golden"


def completed(name, config):
    """The config as the converter wants it."""
    text = config.get("text_config", config)
    if name in ("deepseek-v3", "deepseek-v32", "glm4-moe-lite", "glm-moe-dsa", "minimax-m2"):
        text.setdefault("scoring_func", "sigmoid")
    if name in ("deepseek-v32", "glm-moe-dsa"):
        text.setdefault("num_nextn_predict_layers", 1)
    if name == "deepseek-v2":
        text.setdefault("scoring_func", "softmax")
    if name == "glm4-moe-lite":
        text.setdefault("first_k_dense_replace", 1)
    if name == "nemotron-h":
        # Published dense models have a pattern, and nothing of experts.
        letters = {"mamba": "M", "attention": "*", "mlp": "-"}
        text["hybrid_override_pattern"] = "".join(letters[kind] for kind in text.pop("layers_block_type"))
        text["num_hidden_layers"] = len(text["hybrid_override_pattern"])
        for key in [key for key in text if "expert" in key or key.startswith("moe_") or key in ("n_group", "topk_group")]:
            del text[key]
    if isinstance(text.get("time_step_limit"), list):
        text["time_step_limit"] = [0.0, math.inf]
    return config


def convert(name, directory):
    source = ROOT / "tiny" / name
    config = completed(name, json.loads((source / "config.json").read_text()))
    weights = {}
    for file in source.glob("model*.safetensors"):
        weights.update(load_file(file))
    (directory / "config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in weights.items()}, directory / "model.safetensors",
              metadata={"format": "pt"})
    # The converter cuts Gemma's table to as many rows as there are tokens.
    vocabulary = {f"t{token}": token for token in range(config.get("text_config", config)["vocab_size"])}
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": []}
    if name.startswith("gemma"):
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    kind = conversion.get_model_class(config["architectures"][0])
    for made in (kind, getattr(kind, "Ministral3Model", kind)):
        made.set_vocab = lambda self: self.gguf_writer.add_tokenizer_model("none")
    target = ROOT / "gguf" / f"{name}.gguf"
    # transformers' own class gives every Nemotron-H fields of experts.
    own = config if name == "nemotron-h" else None
    model = kind(directory, gguf.LlamaFileType.MOSTLY_BF16, target, hparams=own)
    model.write()


(ROOT / "gguf").mkdir(exist_ok=True)
for name in sys.argv[2:] or NAMES:
    with tempfile.TemporaryDirectory() as directory:
        try:
            convert(name, Path(directory))
        except Exception as error:  # noqa: BLE001: the others are made all the same
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
