"""Runs CTranslate2: its generator, greedy."""

import json
from collections.abc import Iterable
from time import perf_counter

import common
import ctranslate2 as library
import numpy as np


class CTranslate2:
    """A model that its converter wrote, on the CPU."""

    def __init__(self, path: str, positions: int, threads: int, form: str) -> None:
        compute = {"f32": "float32"}.get(form, form)
        self.generator = library.Generator(
            path, device="cpu", compute_type=compute, inter_threads=1, intra_threads=threads
        )
        with open(f"{path}/vocabulary.json") as file:
            self.words = json.load(file)
        self.vocabulary = len(self.words)
        self.facts = {"version": library.__version__, "build": self.generator.compute_type}

    def measure(self, tokens: list[int], generate: int) -> dict:
        """Timed by a callback for each token: until the first, and from there to the last."""
        times, generated = [], []

        def take(step) -> bool:
            times.append(perf_counter())
            generated.append(step.token_id)
            return False

        count = generate + 1
        begun = perf_counter()
        self.generator.generate_batch(
            [[self.words[token] for token in tokens]],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=take,
        )
        if len(times) != count:
            raise SystemExit(f"{len(times)} tokens instead of {count}")
        return {"prefill": times[0] - begun, "decode": times[-1] - times[0], "generated": generated[:generate]}

    def logits(self, tokens: list[int]) -> Iterable[np.ndarray]:
        """Those after each token, in one pass."""
        return np.array(self.generator.forward_batch([tokens]))[0]


if __name__ == "__main__":
    common.main("ctranslate2", CTranslate2)
