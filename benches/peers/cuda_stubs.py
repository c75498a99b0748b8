"""Lets torch's CUDA wheel compute on the CPU without gigabytes of CUDA libraries.

PyPI has no CPU wheel of torch for Linux on x86-64, and the one that it has links cuBLAS, cuDNN and others, which are
never called without a GPU. For each of these that is missing, an empty library of its name is built, and one that has
all their functions; these return an error. What torch does call without a GPU, the CUDA runtime, must be the real one.
"""

import os
import re
import subprocess
from pathlib import Path

FUNCTIONS = "libnone-of-cuda.so"
ENTRY = "libtorch_python.so"
"""Needs every library that `import torch` loads."""


def build(torch_libraries: Path, stubs: Path) -> int:
    """Builds what is missing; how many libraries that is.

    Raises CalledProcessError if the C compiler or ldd fails.
    """
    stubs.mkdir(parents=True, exist_ok=True)
    for old in stubs.iterdir():
        old.unlink()
    missing = sorted(missing_libraries(torch_libraries / ENTRY))
    for name in missing:
        compile_library(stubs, name, "")
    if missing:
        functions = sorted(undefined_functions(torch_libraries, stubs))
        compile_library(stubs, FUNCTIONS, "".join(f"long {name}(void) {{ return 100; }}\n" for name in functions))
        # One of them brings the functions along. None has them itself: the loader takes an unversioned symbol
        # from any library but the one that was to have the versioned one.
        compile_library(stubs, missing[0], "", "-Wl,--no-as-needed", str(stubs / FUNCTIONS))
    return len(missing)


def missing_libraries(library: Path) -> set[str]:
    """Names of the libraries that the loader does not find."""
    return set(re.findall(r"^\s*(\S+) => not found", ldd(library), re.MULTILINE))


def undefined_functions(torch_libraries: Path, stubs: Path) -> set[str]:
    """C functions that no library has; Python's are the interpreter's."""
    found: set[str] = set()
    for library in torch_libraries.glob("lib*.so"):
        found |= set(re.findall(r"^undefined symbol: (\w+)", ldd("-r", library, path=stubs), re.MULTILINE))
    return {name for name in found if not re.match(r"_?Py|_Z", name)}


def ldd(*arguments: str | Path, path: Path | None = None) -> str:
    """What ldd says, on either of its outputs."""
    environment = {**os.environ, "LC_ALL": "C"} | ({"LD_LIBRARY_PATH": str(path)} if path else {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(["ldd", *arguments], env=environment, **pipes).stdout


def compile_library(folder: Path, name: str, source: str, *flags: str) -> None:
    """Builds a shared library from C."""
    command = ["cc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{name}", "-o", folder / name]
    command += ["-x", "c", "-", "-x", "none", *flags]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
