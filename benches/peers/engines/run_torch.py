"""Runs transformers on torch, eagerly, as `generate` would."""

from collections.abc import Iterable

import common
import numpy as np
import torch
import transformers

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Torch(common.Stepwise):
    """A model from a directory in Hugging Face layout."""

    def __init__(self, path: str, positions: int, threads: int, dtype: str) -> None:
        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        loaded = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], local_files_only=True)
        self.model = loaded.eval()
        self.vocabulary = self.model.config.vocab_size
        capability = torch.backends.cpu.get_cpu_capability()
        version = f"{torch.__version__.partition('+')[0]}, transformers {transformers.__version__}"
        build = f"{capability}, attention {self.model.config._attn_implementation}"
        self.facts = {"version": version, "build": build, "instructions": capability.replace("AVX512", "AVX-512")}
        self.cache = None

    def clear(self) -> None:
        """Empties the cache."""
        self.cache = None

    @torch.inference_mode()
    def next(self, tokens: list[int]) -> int:
        """The likeliest token after these; logits are computed of the last position only."""
        ids = torch.tensor([tokens])
        output = self.model(ids, cache=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = output.cache
        return int(output.logits[0, -1].argmax())

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> Iterable[np.ndarray]:
        """Those after each token, in one pass."""
        return self.model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


if __name__ == "__main__":
    common.main("torch", Torch)
