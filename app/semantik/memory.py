"""The memory of a GPU: the cap of this process, the batches that it has room for, and what happens when
there is none left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semantik import probe
from semantik.exceptions import DeviceFull, SemantikError, SettingsError
from semantik.logs import event

if TYPE_CHECKING:
    from semantik.model import Model

log = logging.getLogger("semantik.model")

#: Seconds to wait, one after the other, for memory that another process holds.
WAITS = (0.5, 1.0, 2.0, 4.0)
#: Token budgets that are tried when a model is loaded, and the seconds that this may take.
SIZES = tuple(1 << power for power in range(12, 19))
CURVE_SECONDS = 4.0
#: Of the best rate: the smallest budget that reaches it is taken, since a larger one only costs memory.
ENOUGH = 0.97
#: Memory for a batch, over what the curve promises: torch keeps pieces that fit no other batch's shapes.
MARGIN = 1.3
# Texts longer than this measure attention rather than the size of batches.
_LONGEST = 8_192
# Batches that are timed together, as many as are in flight later.
_TIMED = 3

# What torch says besides OutOfMemoryError when there is no memory: libraries that allocate for themselves.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle, made at the first product, found no room
    "DefaultCPUAllocator: can't allocate memory",
)


def ran_out(error: RuntimeError) -> bool:
    """Return whether torch raised `error` because its device has no memory left."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def release(device: str) -> None:
    """Give memory that torch keeps for later back to the device; waits for what is still running there."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def cap(max_gb: float) -> int:
    """Limit what torch takes of the GPU in this process to `max_gb` (2^30 bytes; 0: the whole card).

    Returns the limit in bytes. What the driver itself takes for a process, about half a GB, comes on top.
    Raises SettingsError where the card has less.
    """
    import torch

    total = int(torch.cuda.get_device_properties(0).total_memory)
    if max_gb <= 0:
        return total
    wanted = int(max_gb * 2**30)
    if wanted > total:
        raise SettingsError(
            f"MODEL_MAX_MEMORY_GB={max_gb:g} is more than the card has, {total / 2**30:.1f} GB: lower it, or "
            "set 0 for the whole card"
        )
    torch.cuda.set_per_process_memory_fraction(wanted / total, 0)
    return wanted


def room(limit: int) -> int:
    """Return the bytes that this process can still allocate: under its limit, and free on the card."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    # What torch keeps for later is this process's, though not free for others.
    kept = torch.cuda.memory_reserved()
    taken = torch.cuda.memory_allocated()
    return max(0, min(limit, free + kept) - taken)


def refusal(limit: int, error: RuntimeError) -> SemantikError:
    """Return what to raise where a model's weights found no room: whose memory is it that is missing?"""
    import torch

    free, total = torch.cuda.mem_get_info()
    reason = str(error).partition("\n")[0]
    others = total - free - torch.cuda.memory_reserved()
    if limit + others > total:
        return DeviceFull(
            f"the GPU has no memory for the model now: {free / 2**30:.1f} of {total / 2**30:.1f} GB free; "
            f"see what else uses it (nvidia-smi) ({reason})"
        )
    return SettingsError(
        f"the model does not fit into {limit / 2**30:.1f} GB of GPU memory: raise MODEL_MAX_MEMORY_GB (0 for "
        f"the whole card), set SEMANTIK_PRECISION=auto, or use a smaller model ({reason})"
    )


@dataclass(frozen=True)
class Point:
    """A token budget that was tried: `size` in bytes at the peak, above the weights; `rate` in tokens/s."""

    tokens: int
    size: int
    rate: float


def fit_budget(model: Model, limit: int) -> None:
    """Measure how memory and speed follow the token budget, and set the model's (GPU only)."""
    started = time.monotonic()
    release(model.device)  # what the checks before left lies in pieces
    space = room(limit)
    points = curve(model, space)
    model.allow(choose(points, space, least=model.max_tokens))
    release(model.device)
    event(
        log, "token budget measured", model=model.name, token_budget=model.token_budget,
        bytes_per_token=int(_line(points)[1]) if points else None, room_gb=space / 2**30,
        curve=" ".join(f"{p.tokens}:{p.size / 2**20:.0f}MB:{p.rate:.0f}/s" for p in points),
        seconds=time.monotonic() - started,
    )  # fmt: skip


def curve(model: Model, space: int, clock: Callable[[], float] = time.perf_counter) -> list[Point]:
    """Run batches of the longest texts with more and more tokens; ends before memory or time does.

    `space`: bytes that can be allocated.
    """
    import torch

    length = min(model.max_tokens, _LONGEST)
    points: list[Point] = []
    begun, spent = clock(), 0.0
    for tokens in SIZES:
        count = tokens // length
        if count == 0:
            continue
        if points and (MARGIN * _size(points, tokens) > space or spent > CURVE_SECONDS):
            break
        # One is shorter: with a mask, attention takes more memory.
        batch = probe.texts(model, [length] * (count - 1) + [length - (count > 1)])
        before = clock()
        weights = torch.cuda.memory_allocated()
        try:
            model.launch(batch).result()
            torch.cuda.reset_peak_memory_stats()
            timed = clock()
            pending = [model.launch(batch) for _ in range(_TIMED)]
            for one in pending:
                one.result()
            seconds = clock() - timed
        except RuntimeError as error:
            if not ran_out(error):
                raise
            break
        size = torch.cuda.max_memory_allocated() - weights
        points.append(Point(count * length, size, _TIMED * sum(map(len, batch)) / max(seconds, 1e-9)))
        spent = clock() - begun + 2 * (clock() - before)  # the next has twice as much to do
    return points


def choose(points: Sequence[Point], space: int, *, least: int) -> int:
    """Return the smallest budget (tokens) within 3 % of the best rate, or what fits `space` bytes if less.

    Never less than `least`, the longest text: without that no batch can be made.
    """
    if not points:
        return least
    best = max(point.rate for point in points)
    wanted = min(point.tokens for point in points if point.rate >= ENOUGH * best)
    base, slope = _line(points)
    return max(least, min(wanted, int((space / MARGIN - base) / slope)))


def _line(points: Sequence[Point]) -> tuple[float, float]:
    """Fit bytes = base + slope · tokens by least squares."""
    if len(points) == 1:
        return 0.0, max(1.0, points[0].size / points[0].tokens)
    slope, base = np.polyfit([point.tokens for point in points], [point.size for point in points], 1)
    return max(0.0, float(base)), max(1.0, float(slope))


def _size(points: Sequence[Point], tokens: int) -> float:
    base, slope = _line(points)
    return base + slope * tokens
