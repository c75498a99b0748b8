"""What the engines in Python share: the prompt, the clock and the line that they print."""

import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

FIRST_PLAIN = 1000
"""Token ids below this may be special ones; candle/src/main.rs has the same rule."""
WARM_UP = (16, 4)
"""The prompt and the tokens of the pass before the clock starts."""


class Engine(Protocol):
    """A loaded model with a cache of positions."""

    vocabulary: int
    facts: dict
    """What is printed beside the figures."""
    inside: float
    """Seconds spent in the library, where that can be told from the rest; otherwise 0."""

    def clear(self) -> None:
        """Empties the cache."""

    def next(self, tokens: list[int]) -> int:
        """Reads these tokens behind what is in the cache; the likeliest token after them."""


def prompt(length: int, vocabulary: int) -> list[int]:
    """Tokens of no meaning, the same in every run."""
    return [FIRST_PLAIN + i * 7919 % (vocabulary - FIRST_PLAIN) for i in range(length)]


def timed(engine: Engine, length: int, generate: int) -> dict:
    """One pass: the prompt at once, then greedy tokens one at a time, whether they end the text or not."""
    tokens = prompt(length, engine.vocabulary)
    engine.clear()
    begun = perf_counter()
    token = engine.next(tokens)
    prefill = perf_counter() - begun
    generated, engine.inside = [], 0.0
    begun = perf_counter()
    for _ in range(generate):
        generated.append(token)
        token = engine.next([token])
    decode = perf_counter() - begun
    speeds = {"prefill": length / prefill, "decode": generate / decode, "tokens": generated[:8]}
    return speeds | ({"outside_library": 1 - engine.inside / decode} if engine.inside else {})


def main(name: str, load: Callable[..., Engine]) -> None:
    """`MODEL PROMPT GEN THREADS PASSES ...`: loads, warms up, measures, prints one JSON line."""
    model, *rest = sys.argv[1:]
    length, generate, threads, passes = map(int, rest[:4])
    engine = load(model, length + generate, threads, *rest[4:])
    timed(engine, *WARM_UP)
    runs = [timed(engine, length, generate) for _ in range(passes)]
    fastest = max(runs, key=lambda run: run["decode"])
    best = {**fastest, "prefill": max(run["prefill"] for run in runs)}
    print(json.dumps({"engine": name, **engine.facts, **best}))
