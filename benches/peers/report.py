"""Results as tables."""

import os
import platform
from itertools import groupby

import kernels
from measure import Result

HEADER = ["engine", "form", "processor, instructions", "prefill tok/s", "median", "decode tok/s", "median"]
HEADER += ["KL to float32", "moi / it: prefill", "decode"]
FIGURES = 3
"""The first column of numbers."""


def machine() -> dict:
    """What it was measured on."""
    return {"processor": kernels.processor(), "cores": os.cpu_count(), "system": platform.platform()}


def tables(results: list[Result], settings: dict, facts: dict, markdown: bool) -> str:
    """A table for each model and form, under what holds for all of them."""
    head = (
        "{prompt} tokens, then {gen}; {threads} threads; kernels: {kernels}; best and median of {rounds} rounds, "
        "in each of which the best of {passes} passes counts"
    ).format(**settings)
    head += "\n{processor}, {cores} cores, load before {load_before:.1f}, {seconds:.0f} s".format(**facts)
    render = as_markdown if markdown else as_text
    parts = [head.replace("\n", "  \n") if markdown else head]
    for title, group in groupby(results, key=lambda result: result.row.title()):
        group = list(group)
        ours = next((result for result in group if result.row.engine == "moi" and result.runs), None)
        parts.append(render(title, [cells_of(result, ours, settings["kernels"]) for result in group]))
    return "\n\n".join(parts)


def cells_of(result: Result, ours: Result | None, which: str) -> list[str]:
    """A result's cells; an engine that failed has its reason behind what it is."""
    version = result.runs[-1].get("version") if result.runs else None
    name = f"{result.row.engine} {version}" if version else result.row.engine
    cells = [name, result.row.label(), f"{kernels.processor()}, {result.instructions(which)}"]
    if not result.runs:
        return [*cells, result.error or "not measured"]
    for what in ("prefill", "decode"):
        cells += [f"{result.best(what):.1f}", f"{result.median(what):.1f}"]
    cells.append(result.kl_cell())
    if ours and ours is not result:
        cells += [f"{ours.best(what) / result.best(what):.2f}" for what in ("prefill", "decode")]
    notes = [f"{len(result.runs)} turns, then: {result.error}"] * bool(result.error)
    notes += [f"no KL: {result.kl_missing}"] * bool(result.kl_missing)
    if notes:
        cells += [""] * (len(HEADER) - len(cells)) + ["; ".join(notes)]
    return cells


def as_markdown(title: str, rows: list[list[str]]) -> str:
    """A Markdown table; what is beyond its columns is a note below it."""
    rule = "|---" * FIGURES + "|---:" * (len(HEADER) - FIGURES) + "|"
    lines = [f"**{title}**", "", f"| {' | '.join(HEADER)} |", rule]
    for cells in rows:
        padded = cells[: len(HEADER)] + [""] * (len(HEADER) - len(cells))
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in padded)} |")
    notes = [f"{cells[0]}, {cells[1]}: {cells[-1]}" for cells in rows if len(cells) > len(HEADER)]
    return "\n".join(lines + [""] * bool(notes) + notes)


def as_text(title: str, rows: list[list[str]]) -> str:
    """Aligned columns. A reason instead of numbers is as long as it is."""
    full = [HEADER, *(cells for cells in rows if len(cells) > FIGURES + 1)]
    widths = [max(len(cells[i]) for cells in [HEADER, *rows]) for i in range(FIGURES)]
    widths += [max(len(cells[i]) for cells in full if len(cells) > i) for i in range(FIGURES, len(HEADER))]

    def line(cells: list[str]) -> str:
        words = [f"{cell:<{width}}" for cell, width in zip(cells[:FIGURES], widths)]
        if len(cells) == FIGURES + 1:
            return "  ".join([*words, cells[FIGURES]])
        figures = [f"{cell:>{width}}" for cell, width in zip(cells[FIGURES:], widths[FIGURES:])]
        return "  ".join([*words, *figures, *cells[len(HEADER) :]]).rstrip()

    return "\n".join([title, line(HEADER), *map(line, rows)])
