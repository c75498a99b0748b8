"""Decodes sequences together with llama.cpp, in one `llama_decode` a step.

run_llama_cpp.py's model; prints the seconds of the steps as JSON.
"""

import json
import sys
from time import perf_counter

import common
import llama_cpp as library
import numpy as np
from run_llama_cpp import silent


class Sequences:
    """A context with a cache for so many sequences of so many positions."""

    def __init__(self, path: str, sequences: int, positions: int, threads: int) -> None:
        library.llama_log_set(silent, None)
        library.llama_backend_init()
        self.model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        params = library.llama_context_default_params()
        params.n_seq_max = sequences
        params.n_ctx = sequences * positions
        params.n_batch = params.n_ubatch = max(512, sequences)
        params.n_threads = params.n_threads_batch = threads
        self.context = library.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp makes no context")
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model))
        self.batch = library.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Runs tokens at positions of sequences; with logits where that is asked for."""
        self.batch.n_tokens = len(entries)
        for at, (token, position, sequence, wanted) in enumerate(entries):
            self.batch.token[at], self.batch.pos[at] = token, position
            self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
            self.batch.logits[at] = wanted
        if code := library.llama_decode(self.context, self.batch):
            raise SystemExit(f"llama_decode returns {code}")

    def likeliest(self, at: int) -> int:
        """The likeliest token behind an entry of the last batch."""
        logits = library.llama_get_logits_ith(self.context, at)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())


def main() -> None:
    """Reads a prompt into each sequence, then takes the likeliest tokens of all, step by step."""
    path, rows, depth, generate, threads = sys.argv[1], *map(int, sys.argv[2:6])
    sequences = Sequences(path, rows, depth + generate, threads)
    tokens = []
    for row in range(rows):
        prompt = common.prompt(depth + row, sequences.vocabulary)[row:]
        sequences.decode([(token, at, row, at == depth - 1) for at, token in enumerate(prompt)])
        tokens.append(sequences.likeliest(depth - 1))
    begun = perf_counter()
    for step in range(generate):
        sequences.decode([(token, depth + step, row, True) for row, token in enumerate(tokens)])
        tokens = [sequences.likeliest(row) for row in range(rows)]
    print(json.dumps({"seconds": perf_counter() - begun, "version": library.__version__}))


if __name__ == "__main__":
    main()
