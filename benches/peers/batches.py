"""Sequences that are decoded together: moi beside llama.cpp's `llama_decode` with as many, in turns.

Installs llama.cpp as peers.py does. Each sequence has so many positions in the end, of which the last were generated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import install
import kernels
from turns import ENGINES


def moi(args: argparse.Namespace, rows: int, activations: str) -> float:
    """Tokens a second of all sequences."""
    flags = ["-q", "--model", args.model, "--device", "cpu", "--quantize", "file", "--activations", activations]
    test = ["-p", 0, "-n", args.gen, "-d", args.positions - args.gen, "-b", rows, "--rules", "token", "-r", 1]
    command = [args.moi, "bench", *flags, *test, "--threads", args.threads, "--format", "json"]
    made = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=environment(args, "moi"))
    return json.loads(made.stdout)[0]["tokens_per_second"]


def llama_cpp(args: argparse.Namespace, rows: int) -> float:
    """The same."""
    script = [install.python("llama.cpp"), "-B", ENGINES / "batch_llama_cpp.py", args.model]
    command = [*script, rows, args.positions - args.gen, args.gen, args.threads]
    made = subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True, env=environment(args, "llama.cpp")
    )
    return rows * args.gen / json.loads(made.stdout)["seconds"]


def environment(args: argparse.Namespace, engine: str) -> dict[str, str]:
    """The variables that an engine is started with."""
    own = kernels.environment(engine, args.kernels)
    if engine == "llama.cpp":
        own |= install.llama_cpp_environment(args.kernels)
    return os.environ | own


def main() -> None:
    """Prints a Markdown table: the medians of turns, and moi's over llama.cpp's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, which both read")
    parser.add_argument("--rows", default="1,8,32,64", help="numbers of sequences")
    parser.add_argument("--positions", type=int, default=256, help="positions of each in the end")
    parser.add_argument("--gen", type=int, default=32, help="how many of these are generated")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--kernels", choices=["best", "avx2"], default="best")
    parser.add_argument("--moi", type=Path, default=Path("target/release/moi"), help="moi's binary")
    args = parser.parse_args()
    if reason := install.ensure("llama.cpp", args.kernels, lambda line: print(line, file=sys.stderr)):
        sys.exit(f"llama.cpp cannot be installed: {reason}")
    print("| sequences | moi | moi, int8 | llama.cpp | moi / llama.cpp | int8 / llama.cpp |\n|---:|---:|---:|---:|---:|---:|")
    for rows in map(int, args.rows.split(",")):
        turns = []
        for _ in range(args.rounds):
            turns.append((moi(args, rows, "mixed"), moi(args, rows, "int8"), llama_cpp(args, rows)))
        mixed, int8, other = map(statistics.median, zip(*turns, strict=True))
        print(f"| {rows} | {mixed:.0f} | {int8:.0f} | {other:.0f} | {mixed / other:.2f} | {int8 / other:.2f} |", flush=True)


if __name__ == "__main__":
    main()
