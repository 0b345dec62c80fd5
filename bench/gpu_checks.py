"""Is a worker's memory kept on a real card? The cap beside a process that holds most of it, and a batch that
does not fit.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpu_shapes import Shape, ids
from semantik.model import load_model
from semantik.precision import min_cosine
from semantik.settings import Settings

#: MODEL_MAX_MEMORY_GB of the checks, and what the other process leaves of the card: enough for that, and for
#: what the driver takes.
CAP_GB = 2.0
LEFT_GB = 4.0
#: Tokens of the batch that does not fit.
BUDGET = 1 << 20
# The other process: takes all but so many bytes, says so, and holds them until its input ends.
_HOG = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.ones(max(1, free - int(sys.argv[1])), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print(len(held), flush=True)
sys.stdin.read()
"""


def settings(directory: Path, device: str, **changes: Any) -> Settings:
    """Return what load_model needs; no service is ever reached."""
    return Settings(
        "redis://", "redis://", "postgresql://", model_dir=str(directory), device=device, **changes
    )


@contextmanager
def hog(left: int) -> Iterator[int]:
    """Have another process hold all of the card but `left` bytes; gives the bytes that it holds."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOG, str(left)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not (said := process.stdout.readline()):
            raise RuntimeError("the process that competes for memory ended: see its message above")
        yield int(said)
    finally:
        process.stdin.close()
        process.wait(30)


def memory(shape: Shape, directory: Path, device: str) -> dict[str, dict[str, Any]]:
    """Return what the checks found; `held` says whether each is as it should be. On a CPU there are none."""
    import torch

    if device != "cuda":
        return {}
    try:
        with hog(int(LEFT_GB * 2**30)) as others:
            competing = _competing(shape, directory, others)
            split = _split(shape, directory)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    return {"cap under a competing allocation": competing, "batch that does not fit": split}


def _competing(shape: Shape, directory: Path, others: int) -> dict[str, Any]:
    import torch

    torch.cuda.reset_peak_memory_stats()
    model = load_model(settings(directory, "cuda", model_max_memory_gb=CAP_GB))
    texts = ids(shape, model.max_tokens, 4 * max(1, model.token_budget // model.max_tokens), seed=1)
    half = len(texts) // 2
    for part in (texts[:half], texts[half:]):
        size = max(1, model.token_budget // model.max_tokens)
        for at in range(0, len(part), size):
            model.embed_ids(part[at : at + size])
    reserved = torch.cuda.max_memory_reserved()
    return {
        "others_gb": round(others / 2**30, 2),
        "cap_gb": CAP_GB,
        "peak_reserved_gb": round(reserved / 2**30, 3),
        "token_budget": model.token_budget,
        "oom_splits": model.oom_splits,
        "held": reserved <= CAP_GB * 2**30 and model.oom_splits == 0,
    }


def _split(shape: Shape, directory: Path) -> dict[str, Any]:
    """Give the model batches far above what its cap has room for."""
    import torch

    model = load_model(settings(directory, "cuda", model_max_memory_gb=CAP_GB, token_budget=BUDGET))
    texts = ids(shape, model.max_tokens, BUDGET // model.max_tokens, seed=2)
    vectors = model.embed_ids(texts)
    splits = model.oom_splits
    few = np.concatenate([model.embed_ids(texts[at : at + 8]) for at in range(0, 64, 8)])
    cosine = min_cosine(few, vectors[: len(few)])
    return {
        "tokens": BUDGET,
        "oom_splits": splits,
        "token_budget_after": model.token_budget,
        "min_cosine_to_small_batches": round(cosine, 6),
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 2**30, 3),
        "held": splits > 0 and cosine > 0.999,
    }
