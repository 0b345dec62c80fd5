"""`make bench-gpu` without a GPU: the program, its arithmetic, and its checks of memory on a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_gpu import FakeGpu

from semantik import memory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import gpu
    import gpu_checks
    import gpu_shapes

    return SimpleNamespace(gpu=gpu, checks=gpu_checks, shapes=gpu_shapes)


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bench/gpu.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "app", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_gpu_it_says_so() -> None:
    done = start()
    assert done.returncode == 1
    assert "sees no CUDA device" in done.stderr
    assert "--device cpu --quick" in done.stderr


def test_the_program_runs_on_a_cpu(tmp_path: Path) -> None:
    done = start("--device", "cpu", "--quick", "-o", str(tmp_path / "out" / "gpu.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))
    rows = {(row["model"], row["length"]): row for row in report["rows"]}
    assert set(rows) == {(name, length) for name in ("tiny-bert", "tiny-qwen3") for length in (12, 40)}
    for row in rows.values():
        assert row["min_cosine_fp32"] > 0.99999
        assert row["precision"] == "float32"
        assert row["engine"] == pytest.approx(row["ratio_default"] * row["encode_default"])
        assert row["mfu"] is None
    assert "tiny-qwen3" in done.stdout


def test_operations_are_counted_as_torch_counts_them(bench: SimpleNamespace, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from torch.utils.flop_counter import FlopCounterMode

    for shape in bench.shapes.TINY:
        network = SentenceTransformer(str(bench.shapes.write(shape, tmp_path / shape.name, 64)), device="cpu")
        network[0].auto_model.set_attn_implementation("eager")  # whose products the counter sees
        counter = FlopCounterMode(display=False)
        batch = torch.from_numpy(np.stack(bench.shapes.ids(shape, 40, 3, seed=1)))
        with counter, torch.inference_mode():
            network({"input_ids": batch})
        # Eager attention computes what a causal mask then throws away; BERT has a pooler that nobody reads.
        masked = shape.layers * 2 * 40 * shape.attention if shape.kind == "qwen3" else 0
        pooler = 2 * shape.hidden**2 / 40 if shape.kind == "bert" else 0
        counted = counter.get_total_flops() / batch.numel()
        assert shape.flops(40) + masked + pooler == pytest.approx(counted, rel=0.002)


def test_texts_have_the_length_that_is_asked_for(bench: SimpleNamespace, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    for shape in bench.shapes.TINY:
        network = SentenceTransformer(str(bench.shapes.write(shape, tmp_path / shape.name, 64)), device="cpu")
        (text,) = bench.shapes.ids(shape, 40, 1, seed=3)
        found = network.tokenizer(bench.shapes.as_text(shape, text))["input_ids"]
        assert found == list(text)


@pytest.mark.parametrize(
    ("card", "rate"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA T4", None),
    ],
)
def test_peaks_are_found_by_the_cards_name(bench: SimpleNamespace, card: str, rate: float | None) -> None:
    assert bench.shapes.peak(card) == rate


def test_the_checks_of_memory(
    bench: SimpleNamespace, tmp_path: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With little to give, so that the tiny model's million tokens do not fit."""

    @contextmanager
    def hog(left: int) -> Iterator[int]:
        gpu.others = gpu.total - left
        yield gpu.others
        gpu.others = 0

    monkeypatch.setattr(bench.checks, "hog", hog)
    monkeypatch.setattr(bench.checks, "CAP_GB", 0.004)
    monkeypatch.setattr(bench.checks, "BUDGET", 1 << 12)
    monkeypatch.setattr(memory, "SIZES", (128, 256))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: gpu.peak)
    shape = bench.shapes.TINY[0]
    found = bench.checks.memory(shape, bench.shapes.write(shape, tmp_path, 64), "cuda")
    competing, split = found.values()
    assert competing["others_gb"] == 4.0
    assert competing["held"], competing
    assert 0 < competing["peak_reserved_gb"] <= 0.004
    assert split["held"], split
    assert split["oom_splits"] >= 1
    assert split["token_budget_after"] < 1 << 12
    assert (gpu.others, gpu.fraction) == (0, 1.0)
    assert bench.checks.memory(shape, tmp_path, "cpu") == {}
