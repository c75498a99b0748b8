"""Installs the peers into a cache outside the repository: a virtual environment, and candle's program."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cuda_stubs

CANDLE = Path(__file__).resolve().parent / "candle"
LLAMA_CPP = ["llama-cpp-python==0.3.36"]
TORCH = ["torch==2.15.0"]
# What torch needs on the CPU, and that runtime of CUDA that its wheel was built with.
TORCH_NEEDS = ["filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "numpy", "setuptools>=77"]
CUDA_RUNTIME = ["nvidia-cuda-runtime==13.2.86"]
TRANSFORMERS = ["transformers==5.24.0", "safetensors"]


class Failed(Exception):
    """Why something is not installed, in one line."""


def user_cache() -> Path:
    """The user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def cache() -> Path:
    """Where everything of this folder is kept."""
    return user_cache() / "moi" / "peers"


def python() -> Path:
    """The virtual environment's."""
    return cache() / "venv" / "bin" / "python"


def candle() -> Path:
    """The program that is built from candle/."""
    return cache() / "candle" / "release" / "peers-candle"


def stubs() -> Path:
    """See cuda_stubs.py."""
    return cache() / "cuda-stubs"


def torch_environment() -> dict[str, str]:
    """How the loader finds the stubs."""
    old = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{stubs()}:{old}" if old else str(stubs())}


def ensure(engine: str, say: Callable[[str], None]) -> str | None:
    """Installs a peer unless it is installed already, by the same recipe and for the same processor; why it failed."""
    recipe, steps = RECIPES[engine]
    # Whoever removes what it stands for removes it too.
    stamp = cache() / ("candle" if engine == "candle" else "venv") / f"{engine}.installed"
    wanted = f"{recipe()}\n{instructions()}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    log = cache() / f"{engine}.log"
    cache().mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    say(f"installing {engine} (this takes minutes; {log})")
    try:
        with log.open("w") as output:
            steps(output)
    except Failed as failed:
        return str(failed)
    stamp.write_text(wanted)
    return None


def instructions() -> str:
    """A digest of what the processor can do: native builds run on no other kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16]


def run(output, command: list, **environment: str) -> None:
    """One step, its words in the log."""
    command = [str(part) for part in command]
    print("$", " ".join([f"{key}={value}" for key, value in environment.items()] + command), file=output, flush=True)
    try:
        code = subprocess.run(command, env=os.environ | environment, stdout=output, stderr=output).returncode
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    if code:
        raise Failed(f"`{Path(command[0]).name} {' '.join(command[1:4])} ...` failed, see {output.name}")


def pip(output, *arguments: str, **environment: str) -> None:
    """pip in the virtual environment, which is made if need be."""
    if not python().exists():
        run(output, [sys.executable, "-m", "venv", cache() / "venv"])
    run(output, [python(), "-m", "pip", "install", "--disable-pip-version-check", *arguments], **environment)


def install_llama_cpp(output) -> None:
    """From source, for this processor: the wheels that others build are for any."""
    jobs = str(os.cpu_count() or 1)
    native = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": jobs}
    # A wheel that pip kept may be for another processor, and one that is installed too.
    fresh = ["--no-binary", "llama-cpp-python", "--no-cache-dir", "--force-reinstall", "--no-deps"]
    pip(output, "numpy", "diskcache", "jinja2", "typing-extensions")
    pip(output, *fresh, *LLAMA_CPP, **native)
    run(output, [python(), "-c", "import llama_cpp"])


def install_torch(output) -> None:
    """Torch without the CUDA libraries that its wheel asks for, and transformers."""
    pip(output, "--no-deps", *TORCH)
    pip(output, *TORCH_NEEDS)
    pip(output, *TRANSFORMERS)
    if platform.system() == "Linux":
        libraries = next((cache() / "venv").glob("lib/python3*/site-packages/torch/lib"))
        if "libcudart.so" in " ".join(cuda_stubs.missing_libraries(libraries / cuda_stubs.ENTRY)):
            pip(output, "--no-deps", *CUDA_RUNTIME)
        try:
            print(f"stubs: {cuda_stubs.build(libraries, stubs())}", file=output, flush=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failed(f"no stubs of CUDA's libraries: {error}") from error
    check = "import torch, transformers; torch.cuda.is_available(); print(torch.ones(8, 8) @ torch.ones(8, 8))"
    run(output, [python(), "-c", check], **torch_environment())


def install_candle(output) -> None:
    """Built for this processor."""
    if not shutil.which("cargo"):
        raise Failed("cargo is needed: https://rustup.rs")
    manifest = ["--manifest-path", CANDLE / "Cargo.toml", "--target-dir", cache() / "candle"]
    run(output, ["cargo", "build", "--release", "--locked", *manifest], RUSTFLAGS="-C target-cpu=native")


def candle_recipe() -> str:
    """All that candle's program is made of."""
    digest = hashlib.sha256()
    for file in ("Cargo.toml", "Cargo.lock", "src/main.rs"):
        digest.update((CANDLE / file).read_bytes())
    return digest.hexdigest()[:16]


RECIPES: dict[str, tuple[Callable[[], str], Callable[..., None]]] = {
    "llama.cpp": (lambda: " ".join(LLAMA_CPP), install_llama_cpp),
    "torch": (lambda: " ".join(TORCH + TORCH_NEEDS + TRANSFORMERS), install_torch),
    "candle": (candle_recipe, install_candle),
}
