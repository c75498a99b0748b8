#!/usr/bin/env python3
"""Times moi beside other engines, with the same weights and as many threads, in turns.

`peers.py` installs what is missing, measures and prints a table; README.md says what the numbers mean.
"""

import sys

sys.dont_write_bytecode = True  # The repository stays as it is.

import argparse
import json
import os
import time
from pathlib import Path

import configurations
import divergence
import install
import kernels
import report
from measure import Result

REPOSITORY = Path(__file__).resolve().parents[2]
BUSY = 0.5
"""The load, before anything is started, from which figures are doubtful."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "install the peers and convert the models, measure nothing"
    parser.add_argument("--install", action="store_true", help=text)
    names(parser, "--engines", configurations.ENGINES, "engines")
    names(parser, "--models", list(configurations.MODELS), "models")
    names(parser, "--forms", list(configurations.ROWS), "forms of the weights", configurations.FORMS)
    text = "instructions that engines may use: all that the processor has, or AVX2 at most (best)"
    parser.add_argument("--kernels", choices=kernels.KERNELS, default="best", help=text)
    parser.add_argument("--no-kl", action="store_true", help="leave out the KL divergence from float32")
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
    args = parser.parse_args()
    if args.kernels == "avx2" and "avx2" not in kernels.flags():
        parser.error("--kernels avx2: this processor has no AVX2")
    return args


def names(
    parser: argparse.ArgumentParser, flag: str, known: list[str], what: str, default: list[str] | None = None
) -> None:
    """Adds a flag that takes a comma-separated list of known names, all of them by default."""

    def parse(text: str) -> list[str]:
        for name in (asked := text.split(",")):
            if name not in known:
                raise argparse.ArgumentTypeError(f"`{name}` is none of {', '.join(known)}")
        return asked

    default = default or known
    others = [name for name in known if name not in default]
    text = f"{what} ({','.join(default)}{'; also ' + ','.join(others) if others else ''})"
    parser.add_argument(flag, type=parse, default=default, metavar="LIST", help=text)


def positive(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"`{text}` is no number above 0")
    return int(text)


def say(text: str) -> None:
    """Progress, beside the result."""
    print(f"peers: {text}", file=sys.stderr, flush=True)


def install_all(engines: list[str], which: str) -> dict[str, str]:
    """Installs the peers among these engines; those that fail, with the reason."""
    failed = {}
    for engine in engines:
        if engine in install.RECIPES and (why := install.ensure(engine, which, say)):
            say(f"{engine} is not installed: {why}")
            failed[engine] = why
    return failed


def prepare_all(args: argparse.Namespace, missing: dict[str, str]) -> list[Result]:
    """Every row that was asked for, its weights in the engine's form; those that cannot be measured have an error."""
    results = []
    for row in configurations.rows(args.engines, args.models, args.forms):
        why = missing.get(row.engine)
        result = Result(row, error=why and f"not installed: {why}")
        if not result.error:
            result.prepare(args.moi)
        if result.error:
            say(f"{row.title()}, {row.engine} {row.label()}: {result.error}")
        results.append(result)
    return results


def measure_all(results: list[Result], args: argparse.Namespace) -> None:
    """Turns, round after round."""
    for round_ in range(1, args.rounds + 1):
        for result in results:
            if result.error:
                continue
            result.take_turn(args)
            what = f"{result.row.title()}, {result.row.engine} {result.row.label()}"
            say(f"round {round_}/{args.rounds}, {what}: {result.last()}")


def measure_kl(results: list[Result], args: argparse.Namespace, missing: dict[str, str]) -> None:
    """The divergence of every row that was timed."""
    if divergence.REFERENCE in args.engines and divergence.REFERENCE not in missing:
        divergence.measure(results, args, say)
        return
    for result in results:
        result.kl_missing = f"it takes {divergence.REFERENCE}, which is not among the engines installed"


def main() -> int:
    """The exit code: 1 if nothing could be installed or measured."""
    args = arguments()
    load = os.getloadavg()[0]
    missing = install_all(args.engines, args.kernels)
    results = prepare_all(args, missing)
    if args.install:
        return 1 if all(result.error for result in results) else 0
    if load > BUSY:
        say(f"this machine is busy (load {load:.1f}): every figure will be too low, the others' more than moi's")
    begun = time.time()
    measure_all(results, args)
    if not args.no_kl:
        measure_kl(results, args, missing)
    facts = {**report.machine(), "load_before": load, "begun": begun, "seconds": time.time() - begun}
    settings = {key: getattr(args, key) for key in ("prompt", "gen", "threads", "kernels", "rounds", "passes")}
    print(report.tables(results, settings, facts, args.markdown))
    if args.output:
        rows = [result.as_json(args.kernels) for result in results]
        everything = {"machine": facts, "settings": settings, "results": rows}
        args.output.write_text(json.dumps(everything, indent=1) + "\n")
    return 0 if any(result.runs for result in results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
