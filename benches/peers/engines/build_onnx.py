"""Runs ONNX Runtime GenAI's model builder, which looks for Gemma 3's rotary bases where older transformers had them."""

import runpy

import onnxruntime_genai.models  # noqa: F401  It puts the next module on the path.
from builders.gemma import Gemma3Model  # isort: skip

build = Gemma3Model.__init__


def build_with_bases(self: Gemma3Model, config: object, *arguments: object) -> None:
    """Puts the bases of both kinds of layers there, then builds."""
    rope = config.rope_parameters
    if "sliding_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope["full_attention"]
    build(self, config, *arguments)


Gemma3Model.__init__ = build_with_bases
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
