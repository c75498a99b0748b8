"""What is measured: rows of tables, in turns."""

import os
import statistics
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

import kernels
import prepare
import turns
from children import Failure
from configurations import Row


@dataclass
class Result:
    """The turns of one row; an error ends them."""

    row: Row
    weights: Path | None = None
    """What the engine loads."""
    runs: list[dict] = field(default_factory=list)
    error: str | None = None
    kl: dict | None = None
    """What engines/kl.py prints."""
    kl_missing: str | None = None
    """Why there is no `kl`, where it was asked for."""

    def prepare(self, moi: Path) -> None:
        """Writes the weights in the engine's form, if need be."""
        try:
            self.weights = prepare.weights(self.row, moi)
        except Failure as failure:
            self.error = str(failure)

    def take_turn(self, args: Namespace) -> None:
        """One more run."""
        load = os.getloadavg()[0]
        try:
            run = turns.speeds(self.row, self.weights, args)
        except Failure as failure:
            self.error = str(failure)
        else:
            self.runs.append({**run, "load_before": load})

    def last(self) -> str:
        """The last turn in words."""
        if self.error:
            return self.error
        return "prefill {prefill:.1f} tok/s, decode {decode:.1f} tok/s".format(**self.runs[-1])

    def best(self, what: str) -> float:
        """The fastest turn's tokens per second."""
        return max(run[what] for run in self.runs)

    def median(self, what: str) -> float:
        """The tokens per second of the turn in the middle."""
        return statistics.median(run[what] for run in self.runs)

    def instructions(self, which: str) -> str:
        """The instruction set in words."""
        reported = self.runs[-1].get("instructions") if self.runs else None
        return kernels.instructions(self.row.engine, which, reported)

    def kl_cell(self) -> str:
        """The divergence in a few characters."""
        if self.kl:
            # Below this the order of the sums decides.
            return "0" if abs(self.kl["kl"]) < 1e-9 else f"{self.kl['kl']:.1e}"
        return "not measured" if self.kl_missing else ""

    def as_json(self, which: str) -> dict:
        """All of it."""
        summary = {}
        if self.runs:
            for what in ("prefill", "decode"):
                summary |= {f"{what}_best": self.best(what), f"{what}_median": self.median(what)}
        named = {"table": self.row.title(), "engine": self.row.engine, "form": self.row.label()}
        named |= {"processor": kernels.processor(), "instructions": self.instructions(which)}
        divergence = self.kl or ({"kl_missing": self.kl_missing} if self.kl_missing else {})
        return {**named, **summary, **divergence, "error": self.error, "runs": self.runs}
