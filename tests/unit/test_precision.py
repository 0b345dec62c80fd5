"""Precision: what is chosen, what is refused, and what is rounded."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import GB, FakeGpu
from tiny import tiny_model
from transformers import Qwen3Config

from semantik import precision, probe
from semantik.exceptions import SettingsError
from semantik.model import load_model
from semantik.precision import MIN_COSINE, min_cosine, place
from semantik.settings import Settings, load


def log_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "semantik.model")


@pytest.fixture
def bending(tmp_path: Path) -> Path:
    """A model whose activations pass 65,504, the largest number of float16, and stay within bfloat16's."""

    def scale(network: Any) -> None:
        layer = network[0].auto_model.encoder.layer[0]
        layer.intermediate.dense.weight.mul_(3_000)
        layer.output.dense.weight.mul_(300)

    return tiny_model(tmp_path / "bending", change=scale)


def test_a_cpu_runs_float32_whatever_is_stored(tmp_path: Path, engine_settings: Settings) -> None:
    directory = tiny_model(tmp_path / "stored", dtype="bfloat16")
    loaded = load_model(replace(engine_settings, model_dir=str(directory)))
    assert loaded.precision == "float32"
    assert {parameter.dtype for parameter in loaded._network.parameters()} == {torch.float32}


def test_bfloat16_on_a_cpu_is_checked_and_used(
    engine_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The real model in the real arithmetic."""
    caplog.set_level(logging.INFO)
    loaded = load_model(replace(engine_settings, precision="bfloat16"))
    assert loaded.precision == "bfloat16"
    assert loaded._network.dtype == torch.bfloat16
    assert "precision checked" in log_of(caplog)
    assert "cosine=0.99" in log_of(caplog)
    assert loaded.embed_ids(probe.texts(loaded, [9, 30])).dtype == np.float32


def test_a_precision_that_bends_the_vectors_is_refused(bending: Path, engine_settings: Settings) -> None:
    settings = replace(engine_settings, model_dir=str(bending), precision="float16")
    with pytest.raises(
        SettingsError, match=r"SEMANTIK_PRECISION=float16: .* cosine of .* at least 0.999"
    ) as caught:
        load_model(settings)
    assert "set SEMANTIK_PRECISION=auto" in str(caught.value)


def test_auto_falls_to_the_next_that_keeps_the_vectors(
    bending: Path, engine_settings: Settings, gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    """And from the weights as they are stored: not from what float16 has made of them."""
    settings = replace(engine_settings, model_dir=str(bending), token_budget=500)
    exact = load_model(settings)
    texts = probe.texts(exact, [5, 20, 60])
    loaded = load_model(replace(settings, device="cuda"))
    assert loaded.precision in ("bfloat16", "float32")
    assert "precision refused: it bends the vectors model=bending precision=float16 cosine=" in log_of(caplog)
    assert min_cosine(exact.embed_ids(texts), loaded.embed_ids(texts)) >= MIN_COSINE


def test_auto_ends_at_float32(
    engine_settings: Settings, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "MIN_COSINE", 1.1)
    loaded = load_model(replace(engine_settings, device="cuda", token_budget=500))
    assert loaded.precision == "float32"
    assert {parameter.dtype for parameter in loaded._network.parameters()} == {torch.float32}
    assert log_of(caplog).count("precision refused") == 2


@pytest.mark.parametrize(("stored", "chosen"), [("float32", "float16"), ("bfloat16", "bfloat16")])
def test_half_precision_follows_what_a_model_is_stored_in(
    stored: str, chosen: str, tmp_path: Path, engine_settings: Settings, gpu: FakeGpu
) -> None:
    directory = tiny_model(tmp_path / "model", dtype=stored)
    settings = replace(engine_settings, model_dir=str(directory), device="cuda", token_budget=500)
    assert load_model(settings).precision == chosen
    assert load_model(replace(settings, precision="float32")).precision == "float32"


def test_an_old_card_has_no_bfloat16(
    tmp_path: Path, engine_settings: Settings, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    directory = tiny_model(tmp_path / "model", dtype="bfloat16")
    settings = replace(engine_settings, model_dir=str(directory), device="cuda", token_budget=500)
    assert load_model(settings).precision == "float16"


def test_where_float32_does_not_fit_the_stored_precision_is_trusted(
    tmp_path: Path, engine_settings: Settings, gpu: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights are exact; of another precision, the CPU tells."""
    directory = tiny_model(tmp_path / "model", dtype="bfloat16", vocabulary=30_000, width=256)
    settings = replace(engine_settings, model_dir=str(directory), device="cuda", token_budget=500)
    settings = replace(settings, model_max_memory_gb=30 / 1024)  # 34 MB of weights in float32, 17 MB in half
    assert load_model(settings).precision == "bfloat16"
    assert "precision not checked: float32 does not fit precision=bfloat16" in log_of(caplog)
    assert gpu.peak < 30 * GB / 1024
    caplog.clear()
    caplog.set_level(logging.INFO)
    gc.collect()  # a process loads one model
    gpu.back_to_host()
    assert load_model(replace(settings, precision="float16")).precision == "float16"
    assert "precision checked model=model precision=float16" in log_of(caplog)
    assert "texts=3" in log_of(caplog)


def test_rotary_positions_keep_their_frequencies(tmp_path: Path) -> None:
    """Rounded to bfloat16, position 4,000 is off by many turns."""
    from sentence_transformers import SentenceTransformer

    config = Qwen3Config(
        vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    network = SentenceTransformer(str(tiny_model(tmp_path / "qwen", config=config)), device="cpu")
    place(network, "bfloat16", "cpu")
    assert network.dtype == torch.bfloat16
    frequencies = [buffer for name, buffer in network.named_buffers() if name.endswith("inv_freq")]
    assert [buffer.dtype for buffer in frequencies] == 2 * [torch.float32]


def test_the_probe_has_texts_of_all_lengths(engine_settings: Settings) -> None:
    model = load_model(replace(engine_settings, token_budget=500))
    texts = probe.texts(model, [1, 12, 256, 9_999])
    assert [len(text) for text in texts] == [3, 12, 256, 256]
    assert all((text[0], text[-1]) == (model.prefix[0], model.suffix[0]) for text in texts)
    assert len({tuple(text[1:3]) for text in texts[1:]}) == 3
    assert model.tokenizer.token_to_id("[UNK]") not in texts[1]


def test_cosine_is_the_least_one_and_knows_what_is_not_finite() -> None:
    left = np.array([[1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    assert min_cosine(left, np.array([[3.0, 0.0], [1.0, 1.0]])) == pytest.approx(np.sqrt(0.5))
    for number in (np.nan, np.inf):
        assert np.isnan(min_cosine(left, np.array([[3.0, 0.0], [number, 1.0]])))
    assert np.isnan(min_cosine(left, np.zeros((2, 2))))


def test_the_setting() -> None:
    env = {"CELERY_BROKER_URL": "redis://r", "SEMANTIK_DATABASE_URL": "postgresql://p"}
    assert load(env).precision == "auto"
    assert load(env | {"SEMANTIK_PRECISION": "bfloat16"}).precision == "bfloat16"
    with pytest.raises(
        SettingsError, match=r"SEMANTIK_PRECISION='half': choose auto, float32, float16 or bf"
    ):
        load(env | {"SEMANTIK_PRECISION": "half"})
