"""Does a network keep texts apart that lie one behind the other? A probe at start: texts so and each alone.

Imports torch: only for processes that load a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semantik.logs import event
from semantik.memory import ran_out

log = logging.getLogger("semantik.model")

#: Least cosine to each text alone, which computes the same in another order: in float32, and in half
#: precision, where the order shows.
LEAST_COSINE = 0.9999
LEAST_COSINE_HALF = 0.999
# Lengths of the texts: some alike, one of a single token beside its special ones. Where layers look no
# further than a window, a longer text comes to them, if it is not too long to be tried at every start.
_LENGTHS = (3, 17, 17, 40)
_LONGEST = {"cpu": 2_048, "cuda": 16_384}
_WINDOWS = ("sliding_window", "local_attention", "attention_chunk_size")


def lengths(network: Any, device: str) -> list[int] | None:
    """Return the lengths of the texts to try, in tokens; None where they would take too long on `device`."""
    config = network[0].auto_model.config
    limits = (getattr(network, "max_seq_length", None), getattr(config, "max_position_embeddings", None))
    longest = min((limit for limit in limits if limit), default=_LONGEST[device])
    found = list(_LENGTHS)
    for window in sorted({getattr(config, name, None) or longest for name in _WINDOWS}):
        if window >= longest:
            break  # no text reaches that far
        found.append(min(longest, window + window // 4 + 8))
        if found[-1] > _LONGEST[device]:
            event(log, "this model runs with padding", reason=f"a window of {window} tokens is not tried")
            return None
    return found


def probe(network: Any, device: str, lengths: list[int]) -> list[Tensor]:
    """Return texts of random ids of these lengths: int64, on `device`."""
    words = network[0].auto_model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(words // 2, words, (length,), generator=generator).to(device) for length in lengths]


def alone(network: Any, texts: list[Tensor], prompt_length: int) -> Tensor:
    """Return the vectors of the texts, (n, dim), each computed alone: no padding and no mask is there."""
    vectors = []
    for ids in texts:
        features = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        vectors.append(network({**features, "prompt_length": prompt_length})["sentence_embedding"])
    return torch.cat(vectors).float()


def differs(
    forward: Callable[[Tensor, list[int]], Tensor], network: Any, texts: list[Tensor], expected: Tensor
) -> str | None:
    """Return why `forward` must not be used for this network, None where its vectors are the `expected`.

    Raises torch's error where the device has no memory: that says nothing of the network.
    """
    try:
        found = forward(torch.cat(texts), [len(ids) for ids in texts]).float()
    except Exception as error:  # whatever a network's own code does with a row of many texts
        if isinstance(error, RuntimeError) and ran_out(error):
            raise
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    cosine = torch.nn.functional.cosine_similarity(found, expected).min().item()
    least = LEAST_COSINE if network[0].auto_model.dtype == torch.float32 else LEAST_COSINE_HALF
    return None if cosine >= least else f"its vectors are bent, cosine {cosine:.4f}"
