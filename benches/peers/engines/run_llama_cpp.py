"""Runs llama.cpp: its C functions through the bindings of llama-cpp-python, and numpy for the likeliest token."""

import re
from time import perf_counter

import common
import llama_cpp as library
import numpy as np


@library.llama_log_callback
def silent(level: int, text: bytes, data: object) -> None:
    """Says nothing."""


class LlamaCpp(common.Stepwise):
    """A model with llama.cpp's defaults: its cache in half precision, flash attention where it chooses so."""

    def __init__(self, path: str, positions: int, threads: int, form: str) -> None:
        library.llama_log_set(silent, None)
        library.llama_backend_init()
        self.model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        params = library.llama_context_default_params()
        params.n_ctx = params.n_batch = positions
        params.n_threads = params.n_threads_batch = threads
        self.context = library.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp makes no context")
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model))
        build = library.llama_print_system_info().decode().strip(" |")
        self.facts = {"version": library.__version__, "build": build, "instructions": instructions(build)}

    def clear(self) -> None:
        """Empties the cache."""
        library.llama_memory_clear(library.llama_get_memory(self.context), True)

    def read(self, tokens: list[int]) -> np.ndarray:
        """The logits after these tokens; they are computed of the last position only."""
        ids = (library.llama_token * len(tokens))(*tokens)
        begun = perf_counter()
        if code := library.llama_decode(self.context, library.llama_batch_get_one(ids, len(tokens))):
            raise SystemExit(f"llama_decode returns {code}")
        logits = library.llama_get_logits_ith(self.context, -1)
        self.inside += perf_counter() - begun
        return np.ctypeslib.as_array(logits, shape=(self.vocabulary,))

    def next(self, tokens: list[int]) -> int:
        """The likeliest token after these."""
        return int(self.read(tokens).argmax())

    def after(self, token: int) -> np.ndarray:
        """The logits after one more token."""
        return self.read([token])


def instructions(build: str) -> str | None:
    """The widest vector instructions that it was built with."""
    names = {"AVX512": "AVX-512", "AVX2": "AVX2", "NEON": "NEON"}
    return next((name for flag, name in names.items() if re.search(rf"\b{flag} = 1", build)), None)


if __name__ == "__main__":
    common.main("llama.cpp", LlamaCpp)
