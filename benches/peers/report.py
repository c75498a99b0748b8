"""Results as tables."""

import os
import platform
from itertools import groupby
from pathlib import Path

from measure import Result

HEADER = ["engine", "prefill tok/s", "median", "decode tok/s", "median", "moi / it: prefill", "decode"]


def machine() -> dict:
    """What it was measured on."""
    return {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()}


def processor() -> str:
    """Its name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def tables(results: list[Result], settings: dict, facts: dict, markdown: bool) -> str:
    """A table for each configuration, under what holds for all of them."""
    head = (
        "{prompt} tokens, then {gen}; {threads} threads; best and median of {rounds} rounds, "
        "in each of which the best of {passes} passes counts"
    ).format(**settings)
    head += "\n{processor}, {cores} cores, load before {load_before:.1f}, {seconds:.0f} s".format(**facts)
    render = as_markdown if markdown else as_text
    parts = [head.replace("\n", "  \n") if markdown else head]
    for title, group in groupby(results, key=lambda result: result.configuration.title):
        group = list(group)
        ours = next((result for result in group if result.engine == "moi" and result.runs), None)
        parts.append(render(title, [row(result, ours) for result in group]))
    return "\n\n".join(parts)


def row(result: Result, ours: Result | None) -> list[str]:
    """A result's cells; an engine that failed has its reason in the second."""
    name = result.engine
    version = result.runs[-1].get("version") if result.runs else None
    cells = [f"{name} {version}" if version else name]
    if not result.runs:
        return [*cells, result.error or "not measured"]
    for what in ("prefill", "decode"):
        cells += [f"{result.best(what):.1f}", f"{result.median(what):.1f}"]
    if ours and ours is not result:
        cells += [f"{ours.best(what) / result.best(what):.2f}" for what in ("prefill", "decode")]
    if result.error:
        cells += [""] * (len(HEADER) - len(cells)) + [f"{len(result.runs)} turns, then: {result.error}"]
    return cells


def as_markdown(title: str, rows: list[list[str]]) -> str:
    """A Markdown table; what is beyond its columns is a note below it."""
    lines = [f"**{title}**", "", f"| {' | '.join(HEADER)} |", "|---" + "|---:" * (len(HEADER) - 1) + "|"]
    for cells in rows:
        padded = cells[: len(HEADER)] + [""] * (len(HEADER) - len(cells))
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in padded)} |")
    notes = [f"{cells[0]}: {cells[-1]}" for cells in rows if len(cells) > len(HEADER)]
    return "\n".join(lines + [""] * bool(notes) + notes)


def as_text(title: str, rows: list[list[str]]) -> str:
    """Aligned columns. A reason instead of numbers is as long as it is."""
    full = [cells for cells in rows if len(cells) > 2]
    first = max(len(cells[0]) for cells in [HEADER, *rows])
    widths = [first] + [max([len(HEADER[i])] + [len(c[i]) for c in full if len(c) > i]) for i in range(1, len(HEADER))]

    def line(cells: list[str]) -> str:
        if len(cells) == 2:
            return f"{cells[0]:<{first}}  {cells[1]}"
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:])]
        return "  ".join([f"{cells[0]:<{first}}", *aligned, *cells[len(HEADER) :]]).rstrip()

    return "\n".join([title, line(HEADER), *map(line, rows)])
