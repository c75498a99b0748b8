"""One turn of each engine: a child process that prints its speeds, or one that writes its logits."""

from argparse import Namespace
from pathlib import Path

import install
import kernels
from children import child, last_row, rows
from configurations import Row

ENGINES = Path(__file__).resolve().parent / "engines"
SCRIPTS = {
    "llama.cpp": "run_llama_cpp.py",
    "torch": "run_torch.py",
    "onnxruntime-genai": "run_onnxruntime_genai.py",
    "openvino-genai": "run_openvino_genai.py",
    "ctranslate2": "run_ctranslate2.py",
}
"""The engines in Python."""


def speeds(row: Row, weights: Path, args: Namespace) -> dict:
    """Tokens per second of prompts and of decoding, and facts about the engine."""
    if row.engine == "moi":
        return speeds_of_moi(row, weights, args)
    numbers = [args.prompt, args.gen]
    environment = environment_of(row.engine, args)
    if row.engine == "candle":
        program = [install.candle(args.kernels), weights]
        return last_row([*program, *numbers, args.threads, args.passes], environment)
    return last_row(python(row, "speed", weights, args.threads, *numbers, args.passes), environment)


def speeds_of_moi(row: Row, weights: Path, args: Namespace) -> dict:
    """`moi bench`: the prompt in an empty cache, then the tokens behind as many positions as the prompt has."""
    common = [args.moi, "bench", "--model", weights, *form_of_moi(row), "--device", "cpu", "--rules", "token"]
    common += ["--repetitions", args.passes, "--threads", args.threads, "--format", "jsonl"]
    environment = environment_of("moi", args)
    prefill = child([*common, "--prompt", args.prompt, "--gen", 0], environment)
    decode = child([*common, "--prompt", 0, "--gen", args.gen, "--depth", args.prompt], environment)
    best = {what: rows(out)[-1]["best_tokens_per_second"] for what, out in (("prefill", prefill), ("decode", decode))}
    return {"version": rows(decode)[-1].get("version"), **best}


def write_logits(row: Row, weights: Path, args: Namespace, tokens: Path, ids: list[int], folder: Path) -> Path:
    """The file of the logits after each token of a text; the ids are also in the file `tokens`."""
    environment = environment_of(row.engine, args)
    if row.engine == "moi":
        output = folder / "logits.safetensors"
        command = [args.moi, "logits", "--model", weights, *form_of_moi(row), "--device", "cpu"]
        command += ["--threads", args.threads, "--tokens", ",".join(map(str, ids)), "--output", output]
        child(command, environment)
    else:
        output = folder / "logits.npy"
        child(python(row, "logits", weights, args.threads, tokens, output), environment)
    return output


def form_of_moi(row: Row) -> list[str]:
    """The flags for a form."""
    form, _, activations = row.form.partition("/")
    flags = ["--dtype", form] if form in ("f32", "bf16") else ["--quantize", form]
    return [*flags, "--activations", activations] if activations else flags


def python(row: Row, task: str, weights: Path, *numbers: object) -> list:
    """A script of engines/ in the engine's virtual environment."""
    script = ENGINES / SCRIPTS[row.engine]
    return [install.python(row.engine), "-B", script, task, weights, row.form, *numbers]


def environment_of(engine: str, args: Namespace) -> dict[str, str]:
    """The variables that an engine is started with."""
    threads = str(args.threads)
    environment = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads} if engine != "moi" else {}
    environment |= kernels.environment(engine, args.kernels)
    if engine == "torch":
        environment |= install.torch_environment()
    if engine == "llama.cpp":
        environment |= install.llama_cpp_environment(args.kernels)
    return environment
