"""Runs ONNX Runtime GenAI: its generator, greedy."""

import json

import common
import numpy as np
import onnxruntime
import onnxruntime_genai as library


class OnnxRuntimeGenAI(common.Stepwise):
    """A model that its builder wrote, on the CPU."""

    def __init__(self, path: str, positions: int, threads: int, form: str) -> None:
        config = library.Config(path)
        config.clear_providers()
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = library.Model(config)
        with open(f"{path}/genai_config.json") as file:
            facts = json.load(file)["model"]
        self.vocabulary = facts["vocab_size"]
        # A model with sliding windows takes no cache that is smaller than they are.
        self.positions = max(positions + 1, facts["decoder"].get("sliding_window", {}).get("window_size", 0))
        version = f"{library.__version__}, onnxruntime {onnxruntime.__version__}"
        self.facts = {"version": version, "build": f"{form}, CPU execution provider"}
        self.generator = None

    def clear(self) -> None:
        """A new generator, its cache allocated; one that has met an end token goes on all the same."""
        params = library.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, max_length=self.positions, min_length=self.positions)
        self.generator = library.Generator(self.model, params)

    def next(self, tokens: list[int]) -> int:
        """The likeliest token after these. A single one is that which the generator chose, and feeds back itself."""
        if len(tokens) > 1:
            self.generator.append_tokens(np.array(tokens, dtype=np.int32))
        self.generator.generate_next_token()
        return int(self.generator.get_next_tokens()[0])

    def after(self, token: int) -> np.ndarray:
        """The logits after one more token."""
        self.generator.append_tokens(np.array([token], dtype=np.int32))
        return self.generator.get_logits().reshape(-1, self.vocabulary)[-1]


if __name__ == "__main__":
    common.main("onnxruntime-genai", OnnxRuntimeGenAI)
