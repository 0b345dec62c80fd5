"""GPU memory: the cap, the measured budget, and batches that do not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import GB, FakeGpu

from semantik import memory, probe
from semantik import model as model_module
from semantik.exceptions import DeviceFull, SettingsError
from semantik.memory import Point, choose
from semantik.model import Model, load_model
from semantik.settings import Settings

MB = 2**20
#: 16 texts of 30 to 60 tokens.
LENGTHS = [30 + 2 * number for number in range(16)]


@pytest.fixture
def fast(engine_settings: Settings, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """The model on the stand-in in float32 with a budget of 960 tokens, and no time to lose."""
    monkeypatch.setattr(memory, "WAITS", (0.0, 0.0))
    yield load_model(replace(engine_settings, device="cuda", precision="float32", token_budget=960))
    gpu.others = 0


def need(gpu: FakeGpu, model: Model, texts: list[Any]) -> int:
    """Return what a batch takes at its peak, in bytes, and a little more."""
    gpu.reset_peak()
    before = gpu.allocated
    model.embed_ids(texts)
    return int(1.1 * (gpu.peak - before))


def test_only_the_batch_that_does_not_fit_is_split(
    fast: Model, model: Model, gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    texts = probe.texts(fast, LENGTHS)
    half = max(need(gpu, fast, texts[:8]), need(gpu, fast, texts[8:]))
    expected = model.embed_ids(texts)  # the stand-in counts what this takes too
    earlier = fast.start(texts[:4])
    gpu.others = gpu.total - gpu.allocated - half
    pending = fast.start(texts)
    cost = sum(LENGTHS) if fast._forward else 16 * max(LENGTHS)
    assert (fast.oom_splits, fast.token_budget) == (1, cost // 2)
    np.testing.assert_allclose(pending.result(), expected, atol=2e-6)
    np.testing.assert_allclose(earlier.result(), expected[:4], atol=2e-6)
    line = next(record.getMessage() for record in caplog.records if "split" in record.getMessage())
    assert line.startswith(
        f"out of memory: batch split tokens={cost} texts=16 token_budget={cost // 2} splits=1"
    )
    assert "many lines" not in line
    # What fits goes on as before.
    fast.embed_ids(texts[:8])
    assert fast.oom_splits == 1


def test_halves_are_halved_again(fast: Model, model: Model, gpu: FakeGpu) -> None:
    texts = probe.texts(fast, LENGTHS)
    most = max(need(gpu, fast, texts[at : at + 2]) for at in range(0, 16, 2))
    expected = model.embed_ids(texts)
    gpu.others = gpu.total - gpu.allocated - most
    np.testing.assert_allclose(fast.embed_ids(texts), expected, atol=2e-6)
    assert 3 < fast.oom_splits <= 15
    assert 60 <= fast.token_budget < 16 * 60 // 4


def test_what_is_freed_meanwhile_saves_the_batch(fast: Model, gpu: FakeGpu) -> None:
    """Another process's moment of need, or memory in pieces: the batch is tried again before it is split."""
    texts = probe.texts(fast, LENGTHS)
    gpu.others = gpu.total - gpu.allocated - MB

    def free() -> None:
        gpu.others = 0

    gpu.on_release = free
    assert fast.embed_ids(texts).shape == (16, 384)
    assert (fast.oom_splits, fast.token_budget) == (0, 960)


def test_a_text_waits_for_memory_and_is_then_given_back(fast: Model, model: Model, gpu: FakeGpu) -> None:
    text = probe.texts(fast, [200])
    expected = model.embed_ids(text)
    gpu.others = gpu.total - gpu.allocated - MB
    released = gpu.released
    with pytest.raises(DeviceFull, match=r"no memory for one text of 200 tokens.*MODEL_MAX_MEMORY_GB"):
        fast.embed_ids(text)
    assert gpu.released - released == 1 + len(memory.WAITS)
    assert fast.oom_splits == 0
    # In the last moment there is room again.
    released = gpu.released

    def free() -> None:
        if gpu.released - released > len(memory.WAITS):
            gpu.others = 0

    gpu.on_release = free
    np.testing.assert_allclose(fast.embed_ids(text), expected, atol=2e-6)


def test_a_budget_that_shrank_grows_back(fast: Model, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "CALM_BATCHES", 4)
    texts = probe.texts(fast, LENGTHS)
    half = max(need(gpu, fast, texts[:8]), need(gpu, fast, texts[8:]))
    gpu.others = gpu.total - gpu.allocated - half
    fast.embed_ids(texts)
    gpu.others = 0
    shrunk = fast.token_budget
    seen = []
    for _ in range(4):
        fast.embed_ids(texts[:1])
        seen.append(fast.token_budget)
    assert seen == [
        shrunk,
        min(960, 2 * shrunk),
        min(960, 2 * shrunk),
        min(960, 2 * shrunk),
    ]  # the two halves were the first calm batches


def test_other_errors_are_not_taken_for_memory(
    fast: Model, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(features: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(fast._network, "forward", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        fast.embed_ids(probe.texts(fast, [10, 12]))
    assert (gpu.released, fast.oom_splits) == (0, 0)


@pytest.mark.parametrize(
    ("error", "taken"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 10 bytes"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: RuntimeError, taken: bool) -> None:
    assert memory.ran_out(error) is taken


def test_the_cap_is_a_fraction_of_the_card(gpu: FakeGpu) -> None:
    assert memory.cap(0.0) == 8 * GB
    assert gpu.fraction == 1.0
    assert memory.cap(2.0) == 2 * GB
    assert gpu.fraction == 0.25
    assert memory.cap(8.0) == 8 * GB
    with pytest.raises(SettingsError, match=r"MODEL_MAX_MEMORY_GB=12 is more than the card has, 8.0 GB"):
        memory.cap(12.0)
    assert gpu.fraction == 1.0


def test_room_is_what_the_cap_and_the_others_leave(gpu: FakeGpu) -> None:
    gpu.take(torch.nn.Module())  # from now on, it is the card that is counted
    held = torch.zeros(64 * MB, dtype=torch.uint8)
    assert memory.room(8 * GB) == 8 * GB - len(held)
    assert memory.room(2 * GB) == 2 * GB - len(held)
    gpu.others = 7 * GB
    assert memory.room(2 * GB) == 1 * GB - len(held)
    gpu.others = 8 * GB
    assert memory.room(2 * GB) == 0


def test_a_model_that_does_not_fit(engine_settings: Settings, gpu: FakeGpu) -> None:
    settings = replace(engine_settings, device="cuda", precision="float32", model_max_memory_gb=0.07)
    with pytest.raises(SettingsError, match=r"does not fit into 0.1 GB of GPU memory: raise MODEL_MAX"):
        load_model(settings)
    gpu.back_to_host()
    gpu.others = gpu.total - 50 * MB
    with pytest.raises(DeviceFull, match=r"no memory for the model now: 0.0 of 8.0 GB free"):
        load_model(replace(settings, model_max_memory_gb=0.0))


def line(*rates: float, per_token: int = 1000, base: int = 0) -> list[Point]:
    return [Point(1000 << at, base + per_token * (1000 << at), rate) for at, rate in enumerate(rates)]


def test_the_smallest_budget_near_the_best_rate_is_taken() -> None:
    rising = line(50.0, 80.0, 98.0, 100.0, 99.0)
    assert choose(rising, 10**12, least=512) == 4000
    # Less memory than that takes: what fits, with the margin.
    assert choose(rising, int(3_000_000 * memory.MARGIN), least=512) == pytest.approx(3000, abs=1)
    assert choose(
        line(50.0, 99.0, base=1_000_000), int(2_000_000 * memory.MARGIN), least=512
    ) == pytest.approx(1000, abs=1)
    # The longest text must have a batch, whatever was measured.
    assert choose(rising, 0, least=512) == 512
    assert choose([], 10**12, least=512) == 512
    assert choose(rising[:1], int(500_000 * memory.MARGIN), least=100) == pytest.approx(500, abs=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SIZES", (128, 256, 512, 1024, 2048))


def test_the_curve_shows_what_batches_take(fast: Model, gpu: FakeGpu, quick: None) -> None:
    ticks = iter(range(10_000))
    points = memory.curve(fast, 8 * GB, clock=lambda: next(ticks) / 1000)
    assert [point.tokens for point in points] == [256, 512, 1024, 2048]  # a text has up to 256
    batch = probe.texts(fast, [256] * 7 + [255])
    assert 1.1 * points[-1].size == pytest.approx(need(gpu, fast, batch), rel=0.05)
    assert points[-1].size > 1.5 * points[-2].size
    # Three batches of 2,047 tokens in a tick of a millisecond.
    assert points[-1].rate == pytest.approx(3 * 2047 * 1000)


def test_the_curve_ends_before_memory_or_time_does(fast: Model, gpu: FakeGpu, quick: None) -> None:
    full = memory.curve(fast, 8 * GB)
    short = memory.curve(fast, int(memory.MARGIN * full[1].size * 1.2))
    assert [point.tokens for point in short] == [256, 512]
    slow = iter(range(0, 10_000, 1))
    assert len(memory.curve(fast, 8 * GB, clock=lambda: float(next(slow)))) == 1


def test_a_curve_that_meets_the_end_of_memory(fast: Model, gpu: FakeGpu, quick: None) -> None:
    """Another process took it between the asking and the trying."""
    gpu.others = gpu.total - gpu.allocated - need(gpu, fast, probe.texts(fast, [256] * 2))
    assert [point.tokens for point in memory.curve(fast, 8 * GB)] == [256, 512]
    assert fast.oom_splits == 0


def test_the_budget_of_a_worker_keeps_to_the_cap(
    engine_settings: Settings, gpu: FakeGpu, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = replace(engine_settings, device="cuda", precision="float32", model_max_memory_gb=0.1)
    loaded = load_model(settings)
    assert 256 <= loaded.token_budget <= 2048
    said = next(record.getMessage() for record in caplog.records if "measured" in record.getMessage())
    assert f"token_budget={loaded.token_budget}" in said
    count = loaded.token_budget // 256
    loaded.embed_ids(probe.texts(loaded, [256] * count))
    assert loaded.oom_splits == 0
    assert gpu.peak <= 0.1 * GB


def test_a_budget_that_was_set_is_not_measured(engine_settings: Settings, gpu: FakeGpu) -> None:
    loaded = load_model(replace(engine_settings, device="cuda", precision="float32", token_budget=777))
    assert loaded.token_budget == 777
    loaded.allow(500)
    assert loaded.token_budget == 500
    assert np.isfinite(loaded.embed_ids(probe.texts(loaded, [5]))).all()
