"""How far each row is from float32: the mean KL divergence over the positions of a text."""

import json
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import install
import prepare
import turns
from children import Failure, child, last_row
from configurations import Model, Row
from measure import Result

TEXT = Path(__file__).resolve().parent / "text.txt"
REFERENCE = "torch"
"""The engine whose float32 logits the others are compared with."""
UNREAD = {"candle": "its program here prints no logits"}
"""Engines that are not compared, and why."""


class Text:
    """The text in a model's tokens, and the reference's logits after each."""

    def __init__(self, model: Model, floats: Path, args: Namespace, folder: Path) -> None:
        scored = json.loads(child([args.moi, "score", TEXT, "--model", model.path(), "--format", "json"]))
        self.ids = [step["token"] for step in scored["steps"]]
        self.file = folder / "tokens.json"
        self.file.write_text(json.dumps(self.ids))
        # Whatever kernels are measured, the reference is torch's best.
        best = Namespace(**{**vars(args), "kernels": "best"})
        row = Row(model, "f32", REFERENCE, "f32")
        written = turns.write_logits(row, floats, best, self.file, self.ids, folder)
        self.reference = written.rename(folder / "reference.npy")


def measure(results: list[Result], args: Namespace, say: Callable[[str], None]) -> None:
    """Sets the `kl` of every result that has been timed."""
    for model in {result.row.model: None for result in results}:
        own = [result for result in results if result.row.model is model and result.runs]
        (install.cache() / "weights").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=install.cache() / "weights") as folder:
            try:
                text = Text(model, prepare.floats(model, args.moi), args, Path(folder))
            except Failure as failure:
                for result in own:
                    result.kl_missing = f"no reference: {failure}"
                continue
            for result in own:
                compare(result, text, args, Path(folder))
                say(f"{result.row.title()}, {result.row.engine} {result.row.label()}: KL {result.kl_cell()}")


def compare(result: Result, text: Text, args: Namespace, folder: Path) -> None:
    """Sets one result's `kl`, or why it has none."""
    row = result.row
    if row.engine in UNREAD:
        result.kl_missing = UNREAD[row.engine]
        return
    try:
        logits = turns.write_logits(row, result.weights, args, text.file, text.ids, folder)
        script = turns.ENGINES / "kl.py"
        result.kl = last_row([install.python(REFERENCE), "-B", script, text.reference, logits])
    except Failure as failure:
        result.kl_missing = str(failure)
