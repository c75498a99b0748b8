"""Prints how far an engine's next-token distributions are from a reference: `kl.py REFERENCE.npy LOGITS`.

LOGITS is a .npy file, or a safetensors file with a tensor `logits`; both are [tokens, vocabulary].
"""

import json
import sys

import numpy as np


def load(path: str) -> np.ndarray:
    """A file's logits."""
    if path.endswith(".npy"):
        return np.load(path, mmap_mode="r")
    from safetensors.numpy import load_file

    return load_file(path)["logits"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """KL(reference || logits) of one position, in nats."""
    ours, theirs = log_softmax(reference), log_softmax(logits)
    return float((np.exp(ours) * (ours - theirs)).sum())


def main() -> None:
    """One JSON line: the mean over the positions, and at how many both have the same likeliest token."""
    reference, logits = map(load, sys.argv[1:])
    if reference.shape != logits.shape:
        raise SystemExit(f"logits of shape {logits.shape}, and {reference.shape} in the reference")
    mean = sum(map(divergence, reference, logits)) / len(reference)
    same = sum(int(ours.argmax() == theirs.argmax()) for ours, theirs in zip(reference, logits)) / len(reference)
    print(json.dumps({"kl": mean, "same_token": same, "positions": len(reference)}))


if __name__ == "__main__":
    main()
