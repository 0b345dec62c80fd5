"""The memory of a GPU: the cap of this process, and what happens when there is none left."""

from __future__ import annotations

#: Seconds to wait, one after the other, for memory that another process holds.
WAITS = (0.5, 1.0, 2.0, 4.0)

# What torch says besides OutOfMemoryError when there is no memory: libraries that allocate for themselves.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
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
