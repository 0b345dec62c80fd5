"""The forward pass without padding: the texts of a batch lie one behind the other in one row of tokens.

Everything but attention works on single tokens, so nothing is computed for padding; attention is kept within
each text. The network's own code runs, with its attention replaced through transformers' interface for that:
torch's variable-length kernel on a GPU that has it, scaled_dot_product_attention text by text on a CPU. A
network that does not keep texts apart this way (relative positions, attention of its own) is found out by a
probe at start and goes the padded way.

Imports torch: only for processes that load a model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from semantik import apart
from semantik.logs import event
from semantik.packed import Packing, round_rows

log = logging.getLogger("semantik.model")

#: The name of this attention among those of transformers.
ATTENTION = "semantik"
# Cells per token, at most, where texts are padded for the modules behind the transformer.
_MOST_CELLS = 2


@dataclass(frozen=True)
class _Layout:
    """Where the texts of the batch lie. Tensors are on the network's device, so that nothing waits for it."""

    lengths: list[int]
    longest: int
    bounds: Tensor  # int32 (n + 1,): where each text starts, and the end
    texts: Tensor  # int64 (T,): of which text a token is
    positions: Tensor  # int64 (T,): of a token in its text


class _Here(threading.local):
    """The pass under way in this thread; None outside of one."""

    layout: _Layout | None = None


_here = _Here()


class Forward:
    """Runs a sentence-transformers network on batches without padding."""

    def __init__(self, network: Any, device: str, *, position_offset: int, prompt_length: int) -> None:
        """Take a network whose attention is ATTENTION. `position_offset`: the number of a first token."""
        self._network = network
        self._device = device
        self._position_offset = position_offset
        self._prompt_length = prompt_length

    def __call__(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Return the vectors (n, dim) of texts whose ids, int64 (T,), lie one behind the other."""
        with torch.inference_mode():
            _here.layout = layout = _lay_out(lengths, self._device)
            tokens = len(ids)
            if self._device == "cpu":
                # Once here rather than at every layer; attention leaves these out, and so does what follows.
                ids = torch.nn.functional.pad(ids, (0, round_rows(tokens) - tokens))
            try:
                transformer = self._network[0].auto_model
                positions = layout.positions + self._position_offset
                positions = torch.nn.functional.pad(positions, (0, len(ids) - tokens))
                states = transformer(input_ids=ids[None], position_ids=positions[None])[0][0, :tokens]
            finally:
                _here.layout = None
            vectors = [self._pool(states, layout, *run) for run in _alike(lengths)]
            return vectors[0] if len(vectors) == 1 else torch.cat(vectors)

    def _pool(self, states: Tensor, layout: _Layout, first: int, last: int, start: int, end: int) -> Tensor:
        """Return the vectors of texts [first, last), whose tokens are [start, end), padded to the longest."""
        # What follows (pooling, dense, normalisation) is as the model's modules have it; it is cheap.
        shape = (last - first, max(layout.lengths[first:last]))
        cells = (layout.texts[start:end] - first) * shape[1] + layout.positions[start:end]
        padded = states.new_zeros((shape[0] * shape[1], states.shape[1]))
        padded[cells] = states[start:end]
        mask = torch.zeros(shape[0] * shape[1], dtype=torch.int64, device=states.device)
        mask[cells] = 1
        features: dict[str, Any] = {
            "token_embeddings": padded.view(*shape, -1),
            "attention_mask": mask.view(shape),
            "prompt_length": self._prompt_length,
        }
        for module in list(self._network)[1:]:
            features = module(features)
        vectors: Tensor = features["sentence_embedding"]
        return vectors


def unpadded(network: Any, device: str, *, prompt_length: int = 0) -> Forward | None:
    """Return the pass for `network`; None where it cannot keep texts apart or the device lacks the kernel.

    `prompt_length`: tokens of the document prompt that a pooling leaves out. Changes the network: its
    attention, which outside of a batch without padding is what it was, and on a CPU its linear layers, which
    keep their weights in the order that the processor multiplies fastest.
    """
    transformer = getattr(network[0], "auto_model", None)
    if transformer is None or (device == "cuda" and not _has_kernel(transformer)):
        return None
    previous = getattr(transformer.config, "_attn_implementation", None)
    if previous != "sdpa" or (lengths := apart.lengths(network, device)) is None:
        return None
    with torch.inference_mode():
        probe = apart.probe(network, device, lengths)
        expected = apart.alone(network, probe, prompt_length)
        if not _adopt(transformer):
            return None
        offset = _position_offset(transformer)
        forward = Forward(network, device, position_offset=offset, prompt_length=prompt_length)
        if (reason := apart.differs(forward, network, probe, expected)) is not None:
            transformer.set_attn_implementation(previous)
            event(log, "this model runs with padding", reason=reason)
            return None
        if device == "cpu":
            packing = Packing(transformer)
            # A processor that cannot, or a network that looks into its layers.
            reason = packing.try_some() or apart.differs(forward, network, probe, expected)
            if reason is None:
                packing.finish()
            else:
                packing.undo()
                event(log, "this model's weights stay as they are", reason=reason)
    return forward


def _adopt(transformer: Any) -> bool:
    """Give the network this attention; False where it does not take another."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _mask)
    try:
        transformer.set_attn_implementation(ATTENTION)
    except (ValueError, AttributeError):
        return False
    transformer.config.use_cache = False  # a decoder that embeds generates nothing
    return bool(transformer.config._attn_implementation == ATTENTION)


def _position_offset(transformer: Any) -> int:
    """Return the number of the first position: RoBERTa and its kin count from behind the padding's."""
    embeddings: Any = getattr(transformer, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1
    return 0


def _has_kernel(transformer: Any) -> bool:
    """Return whether torch's variable-length attention runs on this GPU with this network's precision."""
    if transformer.dtype not in (torch.float16, torch.bfloat16):
        return False
    if torch.cuda.get_device_capability() < (8, 0):
        return False
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return False
    windows = getattr(transformer.config, "sliding_window", None)
    return not windows or "window_size" in signature(varlen.varlen_attn).parameters


def _lay_out(lengths: list[int], device: str) -> _Layout:
    """Send the lengths to the device and compute the rest there: nothing waits for the device."""
    host = torch.tensor(lengths, dtype=torch.int64)
    sizes = host.pin_memory().to(device, non_blocking=True) if device == "cuda" else host
    total, longest = sum(lengths), max(lengths)
    bounds = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=device)
    bounds[1:] = sizes.cumsum(0)
    texts = torch.repeat_interleave(torch.arange(len(lengths), device=device), sizes, output_size=total)
    positions = torch.arange(total, device=device) - bounds[:-1].long()[texts]
    return _Layout(lengths, longest, bounds, texts, positions)


def _alike(lengths: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield runs of texts that are padded together, as (first, last, start of tokens, end of tokens).

    One long text among short ones must not make a batch of a few MB one of many GB.
    """
    first = start = end = longest = 0
    for at, length in enumerate(lengths):
        widest = max(longest, length)
        if at > first and (at + 1 - first) * widest > _MOST_CELLS * (end + length - start):
            yield first, at, start, end
            first, start, widest = at, end, length
        longest, end = widest, end + length
    yield first, len(lengths), start, end


def _mask(*arguments: Any, **options: Any) -> Any:
    """Make no mask for a batch without padding, and transformers' own for every other."""
    if _here.layout is not None:
        return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*arguments, **options)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend within each text. query (1, heads, T, width); key and value may have fewer heads.

    Returns (1, T, heads, width). Outside of a batch without padding this is transformers' own.
    """
    layout = _here.layout
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        own: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return own
    causal = options.get("is_causal")
    if causal is None:
        causal = bool(getattr(module, "is_causal", False))
    attend = _attend_cuda if query.device.type == "cuda" else _attend_cpu
    scale, window = options.get("scaling"), options.get("sliding_window")
    return attend(query, key, value, layout, causal, scale, window), None


def _attend_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: _Layout,
    causal: bool,
    scale: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention import varlen

    attend: Any = varlen.varlen_attn
    known = signature(attend).parameters  # they differ between torch 2.10 and 2.13
    options: dict[str, Any] = {"scale": scale} if "scale" in known else {}
    if "window_size" in known:
        reach = -1 if window is None else window - 1
        options["window_size"] = (reach, 0 if causal else reach)
    else:
        options["is_causal"] = causal
    # (1, heads, T, width) -> (T, heads, width), without a copy
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    if (share := queries.shape[1] // keys.shape[1]) > 1:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            keys, values = (states.repeat_interleave(share, 1) for states in (keys, values))
    bounds, longest = layout.bounds, layout.longest
    result: Tensor = attend(queries, keys, values, bounds, bounds, longest, longest, **options)
    return result[None]


def _attend_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: _Layout,
    causal: bool,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Attend to the texts of one length at once: batches are packed by length, so that they lie together."""
    heads, total = query.shape[1:3]
    # Zero behind the last text, where rows only make the number round.
    out = query.new_zeros((1, total, heads, value.shape[3]))
    start = 0
    for length, group in groupby(layout.lengths):
        count = len(list(group))
        end = start + count * length
        # (1, heads, count * length, width) -> (count, heads, length, width), without a copy
        queries, keys, values = (
            states[0, :, start:end].view(states.shape[1], count, length, -1).transpose(0, 1)
            for states in (query, key, value)
        )
        band = None if window is None or window >= length else _band(length, window, causal, query)
        result = torch.nn.functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=band,
            is_causal=causal and band is None and length > 1,
            scale=scale,
            enable_gqa=heads != key.shape[1],
        )
        out[0, start:end].view(count, length, heads, -1).copy_(result.transpose(1, 2))
        start = end
    return out


def _band(length: int, window: int, causal: bool, like: Tensor) -> Tensor:
    """Return which positions see which: those less than `window` away, and none ahead where causal."""
    places = torch.arange(length, device=like.device)
    away = places[:, None] - places[None, :]
    near = away.abs() < window
    return near & (away >= 0) if causal else near
