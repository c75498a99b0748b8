"""What is measured: which engine on which file, one child process per turn."""

import json
import os
import re
import signal
import statistics
import subprocess
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import install

ENGINES = ["moi", "llama.cpp", "torch", "candle"]
MODELS = ["smollm2", "gemma"]
TIMEOUT = 1800
"""Seconds that a child may take."""
HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("MOI_CACHE") or install.user_cache() / "moi")
SMOLLM2 = "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = "gemma-3-270m/gemma-3-270m-q4_k_m.gguf"


@dataclass(frozen=True)
class Configuration:
    """A model's file, the form in which its weights are held, and who can hold them so."""

    title: str
    model: str
    file: str
    dtype: str
    """`file` is as the file has them."""
    peers: tuple[str, ...]
    always: bool = True
    """Whether it is measured without being asked for."""

    def path(self) -> Path:
        """Where `moi` keeps the file."""
        return CACHE / "models" / self.file


CONFIGURATIONS = [
    Configuration("SmolLM2-135M Q4_1", "smollm2", SMOLLM2, "file", ("llama.cpp", "candle")),
    Configuration("SmolLM2-135M float32", "smollm2", SMOLLM2, "f32", ("torch",)),
    Configuration("SmolLM2-135M bfloat16", "smollm2", SMOLLM2, "bf16", ("torch",), always=False),
    Configuration("Gemma-3-270M Q4_K_M", "gemma", GEMMA, "file", ("llama.cpp", "candle")),
]


@dataclass
class Result:
    """The turns of one engine in one configuration; an error ends them."""

    configuration: Configuration
    engine: str
    runs: list[dict] = field(default_factory=list)
    error: str | None = None

    def take_turn(self, args: Namespace) -> None:
        """One more run."""
        load = os.getloadavg()[0]
        try:
            run = CHILDREN[self.engine](self.configuration, args)
        except Failure as failure:
            self.error = str(failure)
        else:
            self.runs.append({**run, "load_before": load})

    def last(self) -> str:
        """The last turn in words."""
        if self.error:
            return self.error
        return "prefill {prefill:.1f} tok/s, decode {decode:.1f} tok/s".format(**self.runs[-1])

    def best(self, what: str) -> float:
        """The fastest turn's tokens per second."""
        return max(run[what] for run in self.runs)

    def median(self, what: str) -> float:
        """The tokens per second of the turn in the middle."""
        return statistics.median(run[what] for run in self.runs)

    def as_json(self) -> dict:
        """All of it."""
        summary = {}
        if self.runs:
            for what in ("prefill", "decode"):
                summary |= {f"{what}_best": self.best(what), f"{what}_median": self.median(what)}
        named = {"configuration": self.configuration.title, "engine": self.engine}
        return {**named, **summary, "error": self.error, "runs": self.runs}


class Failure(Exception):
    """Why there is no measurement, in one line."""


def plan(engines: list[str], models: list[str], optional: bool, missing: dict[str, str]) -> list[Result]:
    """Who takes turns, in this order: by configuration, moi first."""
    results = []
    for configuration in CONFIGURATIONS:
        if configuration.model not in models or not (configuration.always or optional):
            continue
        for engine in ENGINES:
            if engine in engines and engine in ("moi", *configuration.peers):
                why = missing.get(engine)
                results.append(Result(configuration, engine, error=why and f"not installed: {why}"))
    return results


def child(command: list, environment: dict[str, str] | None = None) -> str:
    """What a child prints.

    Raises Failure with the last line that it said to its user.
    """
    environment = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
    except OSError as error:
        raise Failure(f"not installed: {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"failed: not done after {TIMEOUT} s") from error
    if done.returncode < 0:
        raise Failure(f"failed: ended by {signal.Signals(-done.returncode).name}")
    if done.returncode > 0:
        raise Failure(f"failed: {reason(done.stderr)}")
    return done.stdout


def reason(said: str) -> str:
    """The line that says why: clap's and anyhow's first, Python's last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it says nothing"]
    errors = [line for line in lines if re.match(r"(moi: )?error:", line, re.IGNORECASE)]
    return (errors or lines[-1:])[0]


def rows(printed: str) -> list[dict]:
    """The JSON objects among the lines of an output."""
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    if not found:
        raise Failure("failed: it prints no result")
    return found


def speed_of_moi(printed: str) -> float:
    """Tokens per second in the only row of `moi bench --format jsonl`, of its best repetition."""
    return rows(printed)[-1]["best_tokens_per_second"]


def run_moi(configuration: Configuration, args: Namespace) -> dict:
    """`moi bench`: the prompt in an empty cache, then the tokens behind as many positions as the prompt has."""
    form = ["--quantize", "file"] if configuration.dtype == "file" else ["--dtype", configuration.dtype]
    common = [args.moi, "bench", "--model", model_file(configuration), *form, "--device", "cpu"]
    common += ["--rules", "token", "--repetitions", args.passes, "--threads", args.threads, "--format", "jsonl"]
    prefill = child([*common, "--prompt", args.prompt, "--gen", 0])
    decode = child([*common, "--prompt", 0, "--gen", args.gen, "--depth", args.prompt])
    version = rows(decode)[-1].get("version")
    return {"version": version, "prefill": speed_of_moi(prefill), "decode": speed_of_moi(decode)}


def run_llama_cpp(configuration: Configuration, args: Namespace) -> dict:
    """engines/run_llama_cpp.py on the file."""
    return run_python("run_llama_cpp.py", model_file(configuration), args)


def run_torch(configuration: Configuration, args: Namespace) -> dict:
    """engines/run_torch.py on the file's values, which `moi convert` writes as floats once."""
    floats = install.cache() / "weights" / f"{configuration.path().stem}-f32"
    if not floats.exists():
        floats.parent.mkdir(parents=True, exist_ok=True)
        to = ["--to", "safetensors", "--dtype", "f32", "--output", floats]
        try:
            child([args.moi, "convert", model_file(configuration), *to])
        except Failure as failure:
            raise Failure(f"failed: no weights, as `moi convert` {failure}") from failure
    return run_python("run_torch.py", floats, args, configuration.dtype, **install.torch_environment())


def run_python(script: str, model: Path, args: Namespace, *more: str, **environment: str) -> dict:
    """A script of engines/ in the virtual environment."""
    numbers = [args.prompt, args.gen, args.threads, args.passes]
    command = [install.python(), "-B", HERE / "engines" / script, model, *numbers, *more]
    return rows(child(command, {"OMP_NUM_THREADS": str(args.threads), **environment}))[-1]


def run_candle(configuration: Configuration, args: Namespace) -> dict:
    """The program of candle/ on the file."""
    numbers = [args.prompt, args.gen, args.threads, args.passes]
    environment = {"RAYON_NUM_THREADS": str(args.threads)}
    return rows(child([install.candle(), model_file(configuration), *numbers], environment))[-1]


def model_file(configuration: Configuration) -> Path:
    """The configuration's file, if it is there."""
    path = configuration.path()
    if not path.exists():
        raise Failure(f"failed: no {path}; `cargo xtask fetch {path.parent.name}` gets it")
    return path


CHILDREN = {"moi": run_moi, "llama.cpp": run_llama_cpp, "torch": run_torch, "candle": run_candle}
