"""Which instruction set an engine may use: `--kernels`."""

import platform
from pathlib import Path

KERNELS = ["best", "avx2"]

AVX2 = {
    "moi": {"MOI_KERNELS": "avx2"},
    # llama.cpp and candle are built for it: see install.py.
    "llama.cpp": {},
    "candle": {},
    "torch": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    # OpenVINO's own kernels and those of oneDNN ask for the processor's instructions separately.
    "openvino-genai": {"OV_CPU_MAX_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    # It multiplies by MKL on Intel's processors and by oneDNN on others.
    "ctranslate2": {"CT2_FORCE_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
"""The variables that keep an engine to AVX2. An engine that is not here has no such switch."""

VARIABLES = {name for variables in AVX2.values() for name in variables}


def environment(engine: str, kernels: str) -> dict[str, str]:
    """The variables that an engine is started with."""
    return AVX2.get(engine, {}) if kernels == "avx2" else {}


def instructions(engine: str, kernels: str, reported: str | None) -> str:
    """The instruction set in words: what the engine reports, else the most that it may use."""
    if reported:
        return reported
    if kernels == "avx2":
        return "AVX2" if engine in AVX2 else f"up to {widest()}, has no switch"
    return f"up to {widest()}"


def widest() -> str:
    """The widest vector instructions of this processor."""
    found = flags()
    names = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}
    return next((name for flag, name in names.items() if flag in found), platform.machine())


def flags() -> list[str]:
    """What the processor can do, in the system's words."""
    line = next((line for line in cpuinfo() if line.startswith(("flags", "Features"))), platform.processor())
    return line.split()


def cpuinfo() -> list[str]:
    """The lines of /proc/cpuinfo, where there is one."""
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


def processor() -> str:
    """The processor's name, and its family and model: a virtual machine's name alone says little."""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in cpuinfo())}
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts and "model" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name
