"""The way of a batch to its device and of its vectors back, without waiting for either."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

#: Batches in flight. While a GPU works on one, the next is packed and copied and the last is taken over by
#: the database; a third covers the moments in which the caller is late. A CPU that computes one batch at a
#: time has nobody to wait for.
DEPTH = {"cpu": 1, "cuda": 3}
#: Batches that a CPU computes at a time, at most. Two threads with a batch each wait for nobody; two that
#: share a batch wait for each other after every operation.
STREAMS = 4


class Pending:
    """The vectors of one batch, which its device may still be working on."""

    def __init__(self, land: Callable[[], NDArray[np.float32]]) -> None:
        self._land: Callable[[], NDArray[np.float32]] | None = land
        self._vectors: NDArray[np.float32] | None = None

    def result(self) -> NDArray[np.float32]:
        """Wait for this batch alone and return its vectors: float32 (n, dim), in the order given."""
        if self._land is not None:
            self._vectors = self._land()
            self._land = None  # with it goes what it held
        assert self._vectors is not None
        return self._vectors


class Staging(Protocol):
    """Memory of the host that one batch at a time passes through."""

    def ids(self, count: int) -> torch.Tensor:
        """Return int64 (count,) to be filled and then uploaded. Waits for the batch before, if any."""

    def upload(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what `ids` gave out, on the device."""

    def fetch(self, vectors: torch.Tensor) -> Pending:
        """Take float32 (n, dim) back from the device."""

    def finish(self) -> None:
        """Wait until the device is done with this memory; the batch's Pending keeps its vectors."""


class Direct:
    """For a CPU: the forward pass reads the host's memory, and is over when it returns."""

    def ids(self, count: int) -> torch.Tensor:
        """Return int64 (count,), not initialised."""
        import torch

        return torch.empty(count, dtype=torch.int64)

    def upload(self, ids: torch.Tensor) -> torch.Tensor:
        """Return `ids`: it is where it is needed."""
        return ids

    def fetch(self, vectors: torch.Tensor) -> Pending:
        """Return a Pending that waits for nothing."""
        result: NDArray[np.float32] = vectors.numpy()
        return Pending(lambda: result)

    def finish(self) -> None:
        """Do nothing: there is nothing to wait for."""


class Pinned:
    """For a GPU: page-locked memory, which its copy engine reads and writes while the host goes on.

    Everything is queued on one stream, so the device's memory of one batch is free for the next as soon as
    Python lets go of it; only the host's memory must be kept until the event says that the copies are done.
    The buffers grow to the largest batch and are then used again and again: locking pages is slow.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._device = device
        self._ids: torch.Tensor | None = None
        self._vectors: torch.Tensor | None = None
        # A thread that waits for it sleeps: the core belongs to parsing and tokenizing meanwhile.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._pending: Pending | None = None

    def ids(self, count: int) -> torch.Tensor:
        """Return pinned int64 (count,), not initialised."""
        import torch

        self.finish()
        self._ids = _room(self._ids, count, torch.int64)
        return self._ids[:count]

    def upload(self, ids: torch.Tensor) -> torch.Tensor:
        """Queue the copy to the device."""
        return ids.to(self._device, non_blocking=True)

    def fetch(self, vectors: torch.Tensor) -> Pending:
        """Queue the copy back; the Pending waits for it."""
        import torch

        count, dim = vectors.shape
        self._vectors = _room(self._vectors, count * dim, torch.float32)
        host = self._vectors[: count * dim].view(count, dim)
        host.copy_(vectors, non_blocking=True)
        self._done.record()

        def land() -> NDArray[np.float32]:
            self._done.synchronize()
            self._pending = None
            copy: NDArray[np.float32] = host.numpy().copy()
            return copy

        self._pending = Pending(land)
        return self._pending

    def finish(self) -> None:
        """Wait for the batch that passes through, if there is one."""
        if self._pending is not None:
            self._pending.result()


def _room(buffer: torch.Tensor | None, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Return `buffer`, or a pinned one with room for `count` elements."""
    import torch

    if buffer is not None and len(buffer) >= count:
        return buffer
    return torch.empty(1 << (count - 1).bit_length(), dtype=dtype, pin_memory=True)


def staging(device: str) -> list[Staging]:
    """Return the memory for all batches in flight on `device`, to be used in turn."""
    if device == "cpu":
        return [Direct() for _ in range(DEPTH["cpu"])]
    return [Pinned(device) for _ in range(DEPTH["cuda"])]
