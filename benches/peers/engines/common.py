"""What the engines in Python share: the prompt, the clock, and what they print or write."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np

FIRST_PLAIN = 1000
"""Token ids below this may be special ones; candle/src/main.rs has the same rule."""
WARM_UP = (16, 4)
"""The prompt and the tokens of the pass before the clock starts."""


class Engine(Protocol):
    """A loaded model."""

    vocabulary: int
    facts: dict
    """What is printed beside the figures."""

    def measure(self, tokens: list[int], generate: int) -> dict:
        """One pass: the prompt at once into an empty cache, then greedy tokens, whether they end the text or not.

        The seconds of both as `prefill` and `decode`, and the tokens as `generated`.
        """

    def logits(self, tokens: list[int]) -> Iterable[np.ndarray]:
        """Those after each of these tokens, in float32."""


class Stepwise:
    """An engine that is called for each token, and timed from outside."""

    inside = 0.0
    """Seconds spent in the library, where that can be told from the rest; otherwise 0."""

    def clear(self) -> None:
        """Empties the cache."""
        raise NotImplementedError

    def next(self, tokens: list[int]) -> int:
        """Reads these tokens behind what is in the cache; the likeliest token after them."""
        raise NotImplementedError

    def after(self, token: int) -> np.ndarray:
        """Reads one token behind what is in the cache; the logits after it."""
        raise NotImplementedError

    def measure(self, tokens: list[int], generate: int) -> dict:
        """See Engine."""
        self.clear()
        begun = perf_counter()
        token = self.next(tokens)
        prefill = perf_counter() - begun
        generated, self.inside = [], 0.0
        begun = perf_counter()
        for _ in range(generate):
            generated.append(token)
            token = self.next([token])
        decode = perf_counter() - begun
        share = {"outside_library": 1 - self.inside / decode} if self.inside else {}
        return {"prefill": prefill, "decode": decode, "generated": generated, **share}

    def logits(self, tokens: list[int]) -> Iterable[np.ndarray]:
        """See Engine."""
        self.clear()
        return (self.after(token) for token in tokens)


def prompt(length: int, vocabulary: int) -> list[int]:
    """Tokens of no meaning, the same in every run."""
    return [FIRST_PLAIN + i * 7919 % (vocabulary - FIRST_PLAIN) for i in range(length)]


def timed(engine: Engine, length: int, generate: int) -> dict:
    """One pass, its seconds as tokens per second."""
    run = engine.measure(prompt(length, engine.vocabulary), generate)
    run |= {"prefill": length / run["prefill"], "decode": generate / run["decode"]}
    return {**run, "tokens": run.pop("generated")[:8]}


def speed(name: str, engine: Engine, length: int, generate: int, passes: int) -> None:
    """Warms up, measures, prints one JSON line."""
    timed(engine, *WARM_UP)
    runs = [timed(engine, length, generate) for _ in range(passes)]
    fastest = max(runs, key=lambda run: run["decode"])
    best = {**fastest, "prefill": max(run["prefill"] for run in runs)}
    print(json.dumps({"engine": name, **engine.facts, **best}))


def write_logits(engine: Engine, tokens: list[int], output: str) -> None:
    """Writes the logits after each token of a text to a .npy file."""
    shape = (len(tokens), engine.vocabulary)
    file = np.lib.format.open_memmap(output, mode="w+", dtype=np.float32, shape=shape)
    for position, row in enumerate(engine.logits(tokens)):
        file[position] = row
    file.flush()


def main(name: str, load: Callable[..., Engine]) -> None:
    """`speed MODEL FORM THREADS PROMPT GEN PASSES` or `logits MODEL FORM THREADS TOKENS.json OUTPUT.npy`."""
    task, model, form, threads, *rest = sys.argv[1:]
    if task == "speed":
        length, generate, passes = map(int, rest)
        speed(name, load(model, length + generate, int(threads), form), length, generate, passes)
    else:
        tokens = json.loads(Path(rest[0]).read_text())
        write_logits(load(model, len(tokens), int(threads), form), tokens, rest[1])
