"""Installs the peers into a cache outside the repository: two virtual environments, and candle's program."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cuda_stubs
import kernels

CANDLE = Path(__file__).resolve().parent / "candle"
LLAMA_CPP = ["llama-cpp-python==0.3.36"]
LLAMA_CPP_NEEDS = ["numpy", "diskcache", "jinja2", "typing-extensions"]
TORCH = ["torch==2.15.0"]
# What torch needs on the CPU, and that runtime of CUDA that its wheel was built with.
TORCH_NEEDS = ["filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "numpy", "setuptools>=77"]
CUDA_RUNTIME = ["nvidia-cuda-runtime==13.2.86"]
TRANSFORMERS = ["transformers==5.24.0", "safetensors"]
# The converters take older ones than that: optimum-intel none from 5.6 on, and for Gemma 3 none after 5.0, in which
# ONNX Runtime GenAI's builder does not find all that it imports.
CONVERTERS = ["transformers==5.5.4", "safetensors"]
OPTIMUM_TRANSFORMERS = ["transformers==5.0.0"]
ONNXRUNTIME_GENAI = ["onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0"]
OPENVINO_GENAI = ["openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0", "openvino==2026.4.1"]
OPENVINO_GENAI += ["nncf==3.4.0", "requests"]
# Without what they ask for: torchvision, which converts no text, and a huggingface-hub that transformers replaces.
OPTIMUM = ["optimum-intel==2.2.0", "optimum==2.3.0"]
CTRANSLATE2 = ["ctranslate2==4.8.5"]

VENV = "venv"
CONVERTERS_VENV = "venv-converters"
VENVS = {engine: CONVERTERS_VENV for engine in ("onnxruntime-genai", "openvino-genai", "ctranslate2")}
"""The virtual environments of engines that are not in VENV."""


class Failed(Exception):
    """Why something is not installed, in one line."""


def user_cache() -> Path:
    """The user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def cache() -> Path:
    """Where everything of this folder is kept."""
    return user_cache() / "moi" / "peers"


def python(engine: str) -> Path:
    """The interpreter of an engine's virtual environment."""
    return cache() / VENVS.get(engine, VENV) / "bin" / "python"


def candle(which: str) -> Path:
    """The program that is built from candle/ for these kernels."""
    return built("candle", which) / "release" / "peers-candle"


def built(engine: str, which: str) -> Path:
    """Where a build for some kernels lies."""
    return cache() / (engine if which == "best" else f"{engine}-{which}")


def llama_cpp_environment(which: str) -> dict[str, str]:
    """How Python finds the build for these kernels; the virtual environment has the best."""
    return {} if which == "best" else {"PYTHONPATH": str(built("llama.cpp", which))}


def optimum_environment() -> dict[str, str]:
    """How Python finds the transformers of optimum-intel before those of the virtual environment."""
    folder = cache() / CONVERTERS_VENV / "transformers-for-optimum"
    return torch_environment(CONVERTERS_VENV) | {"PYTHONPATH": str(folder)}


def stubs(venv: str) -> Path:
    """Those of a virtual environment: see cuda_stubs.py."""
    return cache() / venv.replace(VENV, "cuda-stubs")


def torch_environment(venv: str = VENV) -> dict[str, str]:
    """How the loader finds the stubs."""
    old = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{stubs(venv)}:{old}" if old else str(stubs(venv))}


def ensure(engine: str, which: str, say: Callable[[str], None]) -> str | None:
    """Installs a peer unless it is installed already, by the same recipe and for the same processor; why it failed."""
    recipe, steps = RECIPES[engine]
    # Whoever removes what it stands for removes it too.
    built_alone = engine == "candle" or (engine == "llama.cpp" and which != "best")
    stamp = (built(engine, which) if built_alone else python(engine).parents[1]) / f"{engine}.installed"
    wanted = f"{recipe()}\n{processor_digest()}\n"
    usable = engine == "candle" or python(engine).exists()
    if usable and stamp.exists() and stamp.read_text() == wanted:
        return None
    log = cache() / f"{built(engine, which).name if built_alone else engine}.log"
    cache().mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    say(f"installing {engine} (this takes minutes; {log})")
    try:
        with log.open("w") as output:
            steps(output, which)
    except Failed as failed:
        return str(failed)
    stamp.write_text(wanted)
    return None


def processor_digest() -> str:
    """A digest of what the processor can do: native builds run on no other kind."""
    return hashlib.sha256(" ".join(sorted(kernels.flags())).encode()).hexdigest()[:16]


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


def pip(output, engine: str, *arguments: str, **environment: str) -> None:
    """pip in an engine's virtual environment, which is made if need be."""
    if not python(engine).exists():
        run(output, [sys.executable, "-m", "venv", python(engine).parents[1]])
    run(output, [python(engine), "-m", "pip", "install", "--disable-pip-version-check", *arguments], **environment)


def install_llama_cpp(output, which: str) -> None:
    """From source, for this processor: the wheels that others build are for any."""
    # Without AVX-512 the compiler must not be told to use all that this processor has, either.
    avx2 = "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=OFF"
    flags = "-DGGML_NATIVE=ON" if which == "best" else avx2
    build = {"CMAKE_ARGS": flags, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    # A wheel that pip kept may be for another processor, and one that is installed too.
    fresh = ["--no-binary", "llama-cpp-python", "--no-cache-dir", "--force-reinstall", "--no-deps"]
    if which != "best":
        shutil.rmtree(built("llama.cpp", which), ignore_errors=True)
        fresh += ["--target", str(built("llama.cpp", which))]
    pip(output, "llama.cpp", *LLAMA_CPP_NEEDS)
    pip(output, "llama.cpp", *fresh, *LLAMA_CPP, **build)
    run(output, [python("llama.cpp"), "-c", "import llama_cpp"], **llama_cpp_environment(which))


def install_torch(output, which: str) -> None:
    """Torch and transformers."""
    torch_in(output, "torch", TRANSFORMERS)


def torch_in(output, engine: str, transformers: list[str]) -> None:
    """Torch in an engine's virtual environment, without the CUDA libraries that its wheel asks for."""
    venv = VENVS.get(engine, VENV)
    pip(output, engine, "--no-deps", *TORCH)
    pip(output, engine, *TORCH_NEEDS)
    pip(output, engine, *transformers)
    if platform.system() == "Linux":
        libraries = next((cache() / venv).glob("lib/python3*/site-packages/torch/lib"))
        if "libcudart.so" in " ".join(cuda_stubs.missing_libraries(libraries / cuda_stubs.ENTRY)):
            pip(output, engine, "--no-deps", *CUDA_RUNTIME)
        try:
            print(f"stubs: {cuda_stubs.build(libraries, stubs(venv))}", file=output, flush=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failed(f"no stubs of CUDA's libraries: {error}") from error
    check = "import torch, transformers; torch.cuda.is_available(); print(torch.ones(8, 8) @ torch.ones(8, 8))"
    run(output, [python(engine), "-c", check], **torch_environment(venv))


def install_onnxruntime_genai(output, which: str) -> None:
    """PyPI's wheels, and what its model builder imports."""
    torch_in(output, "onnxruntime-genai", CONVERTERS)
    pip(output, "onnxruntime-genai", *ONNXRUNTIME_GENAI)
    run(output, [python("onnxruntime-genai"), "-c", "import onnxruntime_genai, onnx_ir"])


def install_openvino_genai(output, which: str) -> None:
    """PyPI's wheels, and optimum-intel, which converts for it."""
    torch_in(output, "openvino-genai", CONVERTERS)
    pip(output, "openvino-genai", *OPENVINO_GENAI)
    pip(output, "openvino-genai", "--no-deps", *OPTIMUM)
    transformers = optimum_environment()["PYTHONPATH"]
    shutil.rmtree(transformers, ignore_errors=True)
    pip(output, "openvino-genai", "--no-deps", "--target", transformers, *OPTIMUM_TRANSFORMERS)
    check = "import openvino_genai, optimum.intel.openvino"
    run(output, [python("openvino-genai"), "-c", check], **optimum_environment())


def install_ctranslate2(output, which: str) -> None:
    """PyPI's wheel; its converter imports torch and transformers."""
    torch_in(output, "ctranslate2", CONVERTERS)
    pip(output, "ctranslate2", *CTRANSLATE2)
    run(output, [python("ctranslate2"), "-c", "import ctranslate2"])


def install_candle(output, which: str) -> None:
    """Built for this processor, or for any with AVX2."""
    if not shutil.which("cargo"):
        raise Failed("cargo is needed: https://rustup.rs")
    processor = "native" if which == "best" else "x86-64-v3"
    manifest = ["--manifest-path", CANDLE / "Cargo.toml", "--target-dir", built("candle", which)]
    command = ["cargo", "build", "--release", "--locked", *manifest]
    run(output, command, RUSTFLAGS=f"-C target-cpu={processor}")


def candle_recipe() -> str:
    """All that candle's program is made of."""
    digest = hashlib.sha256()
    for file in ("Cargo.toml", "Cargo.lock", "src/main.rs"):
        digest.update((CANDLE / file).read_bytes())
    return digest.hexdigest()[:16]


def recipe(*parts: list[str]) -> Callable[[], str]:
    """The requirements that an engine is installed by."""
    return lambda: " ".join(sum(parts, []))


RECIPES: dict[str, tuple[Callable[[], str], Callable[..., None]]] = {
    "llama.cpp": (recipe(LLAMA_CPP), install_llama_cpp),
    "torch": (recipe(TORCH, TORCH_NEEDS, TRANSFORMERS), install_torch),
    "candle": (candle_recipe, install_candle),
    "onnxruntime-genai": (recipe(TORCH, CONVERTERS, ONNXRUNTIME_GENAI), install_onnxruntime_genai),
    "openvino-genai": (
        recipe(TORCH, CONVERTERS, OPENVINO_GENAI, OPTIMUM, OPTIMUM_TRANSFORMERS),
        install_openvino_genai,
    ),
    "ctranslate2": (recipe(TORCH, CONVERTERS, CTRANSLATE2), install_ctranslate2),
}
