#!/usr/bin/env python3
"""Times moi beside llama.cpp, transformers on torch and candle: same files, same threads, taking turns.

`peers.py` installs what is missing, measures and prints a table; README.md says what the numbers mean.
"""

import sys

sys.dont_write_bytecode = True  # The repository stays as it is.

import argparse
import json
import os
import time
from pathlib import Path

import install
import measure
import report

REPOSITORY = Path(__file__).resolve().parents[2]
BUSY = 0.5
"""The load, before anything is started, from which figures are doubtful."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install the peers, measure nothing")
    names(parser, "--engines", measure.ENGINES, "engines")
    names(parser, "--models", measure.MODELS, "models")
    parser.add_argument("--bf16", action="store_true", help="also SmolLM2 in bfloat16, by moi and torch")
    numbers = {
        "--prompt": (512, "tokens that are read at once"),
        "--gen": (128, "tokens generated behind them"),
        "--threads": (2, "threads of every engine"),
        "--rounds": (5, "turns of each engine"),
        "--passes": (2, "timed passes in a turn"),
    }
    for flag, (default, text) in numbers.items():
        parser.add_argument(flag, type=positive, default=default, metavar="N", help=f"{text} ({default})")
    target = Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")
    parser.add_argument("--moi", type=Path, default=target / "release" / "moi", metavar="PATH", help="moi's binary")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write every run to a JSON file")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser.parse_args()


def names(parser: argparse.ArgumentParser, flag: str, known: list[str], what: str) -> None:
    """Adds a flag that takes a comma-separated list of known names, all of them by default."""

    def parse(text: str) -> list[str]:
        for name in (asked := text.split(",")):
            if name not in known:
                raise argparse.ArgumentTypeError(f"`{name}` is none of {', '.join(known)}")
        return asked

    parser.add_argument(flag, type=parse, default=known, metavar="LIST", help=f"{what} ({','.join(known)})")


def positive(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"`{text}` is no number above 0")
    return int(text)


def say(text: str) -> None:
    """Progress, beside the result."""
    print(f"peers: {text}", file=sys.stderr, flush=True)


def install_all(engines: list[str]) -> dict[str, str]:
    """Installs the peers among these engines; those that fail, with the reason."""
    failed = {}
    for engine in engines:
        if engine in install.RECIPES and (why := install.ensure(engine, say)):
            say(f"{engine} is not installed: {why}")
            failed[engine] = why
    return failed


def measure_all(args: argparse.Namespace, missing: dict[str, str]) -> list[measure.Result]:
    """Every configuration by every engine that it is meant for, round after round."""
    results = measure.plan(args.engines, args.models, args.bf16, missing)
    for round_ in range(1, args.rounds + 1):
        for result in results:
            if result.error:
                continue
            result.take_turn(args)
            say(f"round {round_}/{args.rounds}, {result.configuration.title}, {result.engine}: {result.last()}")
    return results


def main() -> int:
    """The exit code: 1 if nothing could be installed or measured."""
    args = arguments()
    wanted = [engine for engine in args.engines if engine in install.RECIPES]
    missing = install_all(wanted)
    if args.install:
        return 1 if wanted and len(missing) == len(wanted) else 0
    load = os.getloadavg()[0]
    if load > BUSY:
        say(f"this machine is busy (load {load:.1f}): every figure will be too low, the others' more than moi's")
    begun = time.time()
    results = measure_all(args, missing)
    facts = {**report.machine(), "load_before": load, "begun": begun, "seconds": time.time() - begun}
    settings = {key: getattr(args, key) for key in ("prompt", "gen", "threads", "rounds", "passes")}
    print(report.tables(results, settings, facts, args.markdown))
    if args.output:
        everything = {"machine": facts, "settings": settings, "results": [result.as_json() for result in results]}
        args.output.write_text(json.dumps(everything, indent=1) + "\n")
    return 0 if any(result.runs for result in results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
