"""Runs OpenVINO GenAI: its pipeline for text, greedy."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import openvino
import openvino_genai as library

import common


class OpenVinoGenAI:
    """A model that optimum-intel wrote, on the CPU."""

    def __init__(self, path: str, positions: int, threads: int, form: str) -> None:
        self.path = path
        self.properties = {"INFERENCE_NUM_THREADS": threads}
        if form == "f32":
            # Otherwise it computes in bfloat16 where the processor does.
            self.properties |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        self.positions = positions
        self.core = openvino.Core()
        graph = self.core.read_model(f"{path}/openvino_model.xml")
        self.vocabulary = graph.output("logits").partial_shape[-1].get_length()
        self.facts = {"version": library.__version__.partition("-")[0], "build": form}

    @cached_property
    def pipeline(self) -> library.LLMPipeline:
        """The pipeline as it is by default, but for the cache of prompts: it would know the second pass's."""
        scheduler = library.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        # A prompt at once, which a pipeline without a scheduler of the caller's does too.
        scheduler.max_num_batched_tokens = max(self.positions, 256)
        return library.LLMPipeline(self.path, "CPU", scheduler_config=scheduler, **self.properties)

    def measure(self, tokens: list[int], generate: int) -> dict:
        """Timed by the pipeline itself: until the first token, and from there to the last."""
        config = library.GenerationConfig()
        config.do_sample, config.ignore_eos, config.max_new_tokens = False, True, generate + 1
        ids = np.array([tokens], dtype=np.int64)
        inputs = library.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        result = self.pipeline.generate(inputs, config)
        times = result.perf_metrics.raw_metrics.m_new_token_times
        if len(times) != generate + 1:
            raise SystemExit(f"{len(times)} tokens instead of {generate + 1}")
        prefill = result.perf_metrics.get_ttft().mean / 1000
        return {"prefill": prefill, "decode": (times[-1] - times[0]) / 1000, "generated": result.tokens[0][:generate]}

    def logits(self, tokens: list[int]) -> Iterable[np.ndarray]:
        """OpenVINO's own, from the same files: the pipeline keeps them to itself."""
        compiled = self.core.compile_model(f"{self.path}/openvino_model.xml", "CPU", self.properties)
        request = compiled.create_infer_request()
        for position, token in enumerate(tokens):
            inputs = {
                "input_ids": np.array([[token]], dtype=np.int64),
                "attention_mask": np.ones((1, position + 1), dtype=np.int64),
                "position_ids": np.array([[position]], dtype=np.int64),
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
            known = {port.any_name for port in compiled.inputs}
            request.infer({name: value for name, value in inputs.items() if name in known})
            yield request.get_tensor("logits").data.reshape(-1, self.vocabulary)[-1]


if __name__ == "__main__":
    common.main("openvino-genai", OpenVinoGenAI)
