"""This engine's forward path against sentence-transformers on a GPU: speed, exactness, memory.

    PYTHONPATH=app python bench/gpu.py [--device cpu --quick] [-o build/bench-gpu.json]

Needs numpy, torch, sentence-transformers and a CUDA device, and nothing from a network. With `--device cpu
--quick`, the same code runs over tiny models, to try the program where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gpu_checks
from gpu_shapes import SHAPES, TINY, Shape, as_text, ids, peak, write
from semantik.model import Model, load_model
from semantik.precision import min_cosine

LENGTHS = (50, 256, 512)
LIMIT = 512
QUICK_LENGTHS = (12, 40)
QUICK_LIMIT = 64
#: Batch sizes of `encode`, the first its default.
BATCH_SIZES = (32, 128, 512)
#: Tokens that one round works on (`encode`, which is slower: a quarter), and seconds that rounds take.
ROUND_TOKENS = 1 << 20
SECONDS = 2.0

Texts = Sequence[NDArray[np.int64]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and write JSON. Returns 1 where there is no GPU or a check of memory fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models, a moment each")
    parser.add_argument("--model", action="append", help="only this shape; can be given several times")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench-gpu.json"))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("semantik").setLevel(logging.INFO)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"bench-gpu: torch {torch.__version__} sees no CUDA device. It measures GPUs: run it where there "
            "is one (nvidia-smi -L) and a CUDA build of torch, or try the program itself with --device cpu "
            "--quick",
            file=sys.stderr,
        )
        return 1
    report = run(options.device, quick=options.quick, only=options.model)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(report))
    print(f"written to {options.output}")
    return 0 if all(check.get("held", True) for check in report["memory"].values()) else 1


def run(device: str, *, quick: bool, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Return all measurements, or those of the shapes named in `only`."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    report: dict[str, Any] = {
        "device": card, "torch": torch.__version__, "peak_flops": peak(card), "rows": [], "memory": {},
    }  # fmt: skip
    lengths, limit = (QUICK_LENGTHS, QUICK_LIMIT) if quick else (LENGTHS, LIMIT)
    with tempfile.TemporaryDirectory() as scratch:
        for shape in TINY if quick else SHAPES:
            if only and shape.name not in only:
                continue
            directory = write(shape, Path(scratch), limit)
            report["rows"] += measure(shape, directory, device, lengths, quick=quick)
            if shape.name == "bge-base":
                report["memory"] = gpu_checks.memory(shape, directory, device)
    return report


def measure(
    shape: Shape, directory: Path, device: str, lengths: Sequence[int], *, quick: bool
) -> list[dict[str, Any]]:
    """Return one row per length for one model."""
    import torch

    tokens, seconds = (2_000, 0.1) if quick else (ROUND_TOKENS, SECONDS)
    texts = {length: ids(shape, length, max(2, tokens // length), seed=length) for length in lengths}
    exact = open_peer(directory, device, torch.float32)
    mixed = [text for length in lengths for text in texts[length][:8]]
    reference = exact.encode([as_text(shape, text) for text in mixed])
    del exact
    rows = [{"model": shape.name, "length": length} for length in lengths]
    for row in rows:
        some = texts[row["length"]]
        row |= peer_rates(shape, directory, device, some[: max(2, len(some) // 4)], seconds)
        release(device)
    model = load_model(gpu_checks.settings(directory, device))
    cosine = min_cosine(reference, model.embed_ids(mixed))
    for row in rows:
        row |= engine_rate(model, texts[row["length"]], seconds)
        best = max(row["encode_default"], row["encode_best"])
        row |= {"ratio_default": row["engine"] / row["encode_default"], "ratio_best": row["engine"] / best}
        row |= {"min_cosine_fp32": cosine, "precision": model.precision, "token_budget": model.token_budget}
        top = peak(torch.cuda.get_device_name()) if device == "cuda" else None
        row["mfu"] = row["engine"] * shape.flops(row["length"]) / top if top else None
    del model
    release(device)
    return rows


def open_peer(directory: Path, device: str, dtype: Any) -> Any:
    """Load with sentence-transformers alone. `dtype` "auto": as it is stored, which is what people get."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(directory), device=device, local_files_only=True, model_kwargs={"dtype": dtype}
    )


def peer_rates(shape: Shape, directory: Path, device: str, texts: Texts, seconds: float) -> dict[str, Any]:
    """Time `encode` as people call it, and in half precision at its best batch size: tokens/s."""
    import torch

    strings = [as_text(shape, text) for text in texts]
    total = sum(len(text) for text in texts)

    def rate(network: Any, batch_size: int) -> float:
        return timed(lambda: network.encode(strings, batch_size=batch_size), total, seconds, device)

    default = rate(open_peer(directory, device, "auto"), BATCH_SIZES[0])
    release(device)
    half = torch.bfloat16 if shape.stored == "bfloat16" else torch.float16
    network = open_peer(directory, device, half if device == "cuda" else torch.float32)
    rates = {size: rate(network, size) for size in BATCH_SIZES}
    best = max(rates, key=lambda size: rates[size])
    return {"encode_default": default, "encode_best": rates[best], "encode_best_batch": best}


def engine_rate(model: Model, texts: Texts, seconds: float) -> dict[str, Any]:
    """Time the engine's forward path over batches under the model's token budget: tokens/s and peak bytes."""
    import torch

    length = len(texts[0])
    size = max(1, model.token_budget // length)
    batches = [texts[at : at + size] for at in range(0, len(texts), size)]

    def once() -> None:
        flying: deque[Any] = deque()
        for batch in batches:
            if len(flying) == model.depth:
                flying.popleft().result()
            flying.append(model.start(batch))
        while flying:
            flying.popleft().result()

    once()
    if model.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rate = timed(once, sum(len(text) for text in texts), seconds, model.device)
    used = torch.cuda.max_memory_allocated() if model.device == "cuda" else None
    return {"engine": rate, "peak_bytes": used, "oom_splits": model.oom_splits}


def timed(work: Callable[[], Any], tokens: int, seconds: float, device: str) -> float:
    """Repeat `work` for `seconds` after one round that does not count, and return tokens/s of the median."""
    import torch

    work()
    rounds: list[float] = []
    begun = time.perf_counter()
    while not rounds or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        rounds.append(time.perf_counter() - started)
    return tokens / float(np.median(rounds))


def release(device: str) -> None:
    """Give a dropped model's memory back before the next is loaded."""
    from semantik import memory

    gc.collect()
    memory.release(device)


def table(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        f"{report['device']}, torch {report['torch']}; thousand tokens/s (`encode` tokenizes "
        "within the time, the engine has its ids already)",
        f"{'model':<22}{'length':>7}{'encode':>9}{'best':>9}{'engine':>9}{'ratio':>7}{'to best':>8}{'MFU':>6}"
        f"{'cosine':>10}{'peak GB':>9}{'budget':>8}  precision",
    ]
    for row in report["rows"]:
        mfu = f"{row['mfu']:.0%}" if row["mfu"] else "-"
        used = f"{row['peak_bytes'] / 2**30:.2f}" if row["peak_bytes"] else "-"
        lines.append(
            f"{row['model']:<22}{row['length']:>7}{row['encode_default'] / 1e3:>9.1f}"
            f"{row['encode_best'] / 1e3:>9.1f}{row['engine'] / 1e3:>9.1f}{row['ratio_default']:>7.2f}"
            f"{row['ratio_best']:>8.2f}{mfu:>6}{row['min_cosine_fp32']:>10.6f}{used:>9}"
            f"{row['token_budget']:>8}  {row['precision']}"
        )
    for name, check in report["memory"].items():
        lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in check.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
