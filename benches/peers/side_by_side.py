"""Puts runs with several instruction sets side by side, as Markdown: side_by_side.py BEST.json AVX2.json [--kl KL.json]."""

import argparse
import json
from itertools import groupby
from pathlib import Path

WHAT = ("prefill", "decode")
COUNTERPARTS = {"int4": "q4_0", "int8": "q8_0"}
"""The form of moi that is made of the same values with as many bits."""


def results(path: Path) -> dict[tuple[str, str, str], dict]:
    """The results of a run, by table, engine and form."""
    found = json.loads(path.read_text())["results"]
    return {(result["table"], result["engine"], result["form"]): result for result in found}


def cells(result: dict | None, ours: dict | None) -> list[str]:
    """The medians of a row, and how many times as fast moi is."""
    if not result or "prefill_median" not in result:
        return ["", "", "", ""]
    medians = [result[f"{what}_median"] for what in WHAT]
    speeds = [f"{median:.0f}" if median >= 100 else f"{median:.1f}" for median in medians]
    if not ours or result["engine"] == "moi":
        return [*speeds, "", ""]
    ratios = [f"{ours[f'{what}_median'] / median:.2f}" for what, median in zip(WHAT, medians)]
    return [*speeds, *ratios]


def table(title: str, keys: list[tuple[str, str, str]], runs: list[dict], kl: dict) -> str:
    """One table: a row for each engine and form, the same columns for each run."""
    head = ["engine", "form"]
    for run in runs:
        sets = {result["instructions"] for result in run.values() if result["engine"] == "moi"}
        head += [f"{', '.join(sorted(sets))}: prefill", "decode", "moi / it: prefill", "decode"]
    head.append("KL to float32")
    lines = [f"**{title}**", "", f"| {' | '.join(head)} |", "|---|---" + "|---:" * (len(head) - 2) + "|"]
    for key in keys:
        row = [key[1], key[2]]
        for run in runs:
            form = COUNTERPARTS.get(key[2], key[2])
            row += cells(run.get(key), run.get((title, "moi", form)))
        divergence = kl.get(key, {}).get("kl")
        row.append("" if divergence is None else "0" if abs(divergence) < 1e-8 else f"{divergence:.1e}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="what peers.py wrote, the widest instructions first")
    parser.add_argument("--kl", type=Path, help="a run that has the divergences, where these have none")
    args = parser.parse_args()
    runs = [results(path) for path in args.runs]
    kl = results(args.kl) if args.kl else runs[0]
    parts = [table(title, list(keys), runs, kl) for title, keys in groupby(runs[0], key=lambda key: key[0])]
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
