"""A GPU for tests where there is none: torch's allocator, streams and pinned memory are stood in for.

Tensors, kernels and models are the real ones, run by the CPU. What operators return is accounted for as a
CUDA allocator would, with a peak, a cap, memory of other processes, and torch's own OutOfMemoryError.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GB = 2**30


class FakeGpu(TorchDispatchMode):
    """Counts bytes, from the first module that is moved to it on: what comes before is the host's memory.

    An old card: the kernel for batches without padding is not there, so batches are padded.

    `others`: what other processes hold. `on_release` is called when memory is given back.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self.others = 0
        self.fraction = 1.0
        self.allocated = 0
        self.peak = 0
        self.pinned = 0  # buffers
        self.recorded = 0
        self.waited = 0
        self.synchronized = 0
        self.released = 0
        self.on_release: Callable[[], None] = lambda: None
        self._live: set[int] = set()
        self._used = False

    @property
    def limit(self) -> int:
        return min(int(self.fraction * self.total), self.total - self.others)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out) if self._used else ():
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return out

    def take(self, module: torch.nn.Module) -> None:
        """Let the weights of `module` in."""
        self._used = True
        for tensor in (*module.parameters(), *module.buffers()):
            self._count(tensor)

    def back_to_host(self) -> None:
        """Count no more until the next module comes."""
        self._used = False

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        if self.allocated + size > self.limit:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes.\nMemory summary of many lines"
            )
        self._live.add(key)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.allocated -= size

    def release(self) -> None:
        self.released += 1
        self.on_release()

    def event(self, **_: Any) -> Any:
        def record() -> None:
            self.recorded += 1

        def synchronize() -> None:
            self.waited += 1

        return SimpleNamespace(record=record, synchronize=synchronize)

    def set_fraction(self, fraction: float, device: int) -> None:
        assert isinstance(fraction, float)
        assert 0 <= fraction <= 1
        self.fraction = fraction

    def synchronize(self) -> None:
        self.synchronized += 1

    def reset_peak(self) -> None:
        self.peak = self.allocated

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put this GPU where torch has its own."""
        for name, value in {
            "is_available": lambda: True,
            "is_bf16_supported": lambda including_emulation=True: True,
            "get_device_properties": lambda _: SimpleNamespace(
                total_memory=self.total, name="Fake", major=7, minor=5
            ),
            "mem_get_info": lambda: (max(0, self.total - self.others - self.allocated), self.total),
            "memory_allocated": lambda: self.allocated,
            "memory_reserved": lambda: self.allocated,
            "max_memory_allocated": lambda: self.peak,
            "reset_peak_memory_stats": self.reset_peak,
            "set_per_process_memory_fraction": self.set_fraction,
            "synchronize": self.synchronize,
            "empty_cache": self.release,
            "Event": self.event,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        empty, move, move_all = torch.empty, torch.Tensor.to, torch.nn.Module.to

        def pinned_or_not(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
            self.pinned += pin_memory
            return empty(*args, **kwargs)

        def here(device: Any) -> Any:
            return "cpu" if isinstance(device, str) and device == "cuda" else device

        def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return move(tensor, *map(here, args), **kwargs)

        def all_to(module: torch.nn.Module, device: Any) -> torch.nn.Module:
            if isinstance(device, str) and device == "cuda":
                self.take(module)
            return move_all(module, here(device))

        monkeypatch.setattr(torch, "empty", pinned_or_not)
        monkeypatch.setattr(torch.Tensor, "to", to)
        monkeypatch.setattr(torch.nn.Module, "to", all_to)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A card of 8 GB of which nothing is used."""
    fake = FakeGpu(8 * GB)
    fake.stand_in(monkeypatch)
    with fake:
        yield fake
