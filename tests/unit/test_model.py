"""The model: what its directory says, what it gives, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from semantik import model as model_module
from semantik.exceptions import SettingsError
from semantik.model import Model, describe_model, load_model
from semantik.settings import Settings

TEXTS = [
    "Redis keeps the queue.",
    "PostgreSQL holds the truth, and every chunk has exactly one row whatever is killed.",
    "A short one",
]


@pytest.fixture
def copied(model_dir: Path, tmp_path: Path) -> Path:
    """A model directory to damage; its weights are links."""
    target = tmp_path / "all-MiniLM-L6-v2"
    shutil.copytree(model_dir, target, copy_function=os.symlink)
    return target


def rewrite(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.unlink()
    path.write_text(json.dumps(values), encoding="utf-8")


def ids_of(model: Model, text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(model.tokenizer.encode(text).ids)


def test_description(model_dir: Path, copied: Path) -> None:
    description = describe_model(copied)
    assert (description.name, description.dim, description.max_tokens) == ("all-MiniLM-L6-v2", 384, 256)
    assert description.size_bytes > 90_000_000
    assert description.revision == describe_model(model_dir).revision
    rewrite(copied / "sentence_bert_config.json", max_seq_length=128)
    changed = describe_model(copied)
    assert changed.max_tokens == 128
    assert changed.revision != description.revision


def test_description_of_other_shapes(copied: Path) -> None:
    rewrite(copied / "1_Pooling" / "config.json", pooling_mode_cls_token=True)
    assert describe_model(copied).dim == 768
    rewrite(copied / "config_sentence_transformers.json", truncate_dim=128)
    assert describe_model(copied).dim == 128
    rewrite(copied / "config.json", max_position_embeddings=130, model_type="roberta")
    assert describe_model(copied).max_tokens == 128


def test_the_command_prints_json_without_torch(model_dir: Path) -> None:
    script = (
        "import runpy, sys; sys.argv = ['model', sys.argv[1]]\n"
        "try: runpy.run_module('semantik.model', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'sentence_transformers', 'transformers'} & set(sys.modules)"
    )
    root = Path(model_module.__file__).parent.parent
    out = subprocess.run(
        [sys.executable, "-c", script, str(model_dir)],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    printed = json.loads(out.stdout)
    assert printed["dim"] == 384
    assert len(printed["revision"]) == 64


def test_a_directory_without_a_model_is_named(tmp_path: Path, engine_settings: Settings) -> None:
    with pytest.raises(SettingsError, match=f"{tmp_path} holds no sentence-transformers model: modules.json"):
        load_model(replace(engine_settings, model_dir=str(tmp_path)))
    with pytest.raises(SettingsError, match="SEMANTIK_MODEL_DIR is not set"):
        load_model(replace(engine_settings, model_dir=""))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_model_with_a_part_missing_is_refused(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(SettingsError, match=r"holds no (weights|tokenizer)"):
        describe_model(copied)


def test_vectors_equal_encode(model: Model) -> None:
    """In one padded batch, against sentence-transformers on one text at a time."""
    ours = model.embed_ids([ids_of(model, text) for text in TEXTS])
    theirs = np.stack([model._network.encode(text) for text in TEXTS])
    assert ours.dtype == np.float32
    assert ours.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_questions_and_documents_have_their_prompts(copied: Path, engine_settings: Settings) -> None:
    rewrite(
        copied / "config_sentence_transformers.json",
        prompts={"query": "query: ", "document": "passage: "},
    )
    prompted = load_model(replace(engine_settings, model_dir=str(copied)))
    inner = np.array(prompted.tokenizer.encode(TEXTS[0], add_special_tokens=False).ids)
    ours = prompted.embed_ids([np.concatenate((prompted.prefix, inner, prompted.suffix))])[0]
    np.testing.assert_allclose(ours, prompted._network.encode(f"passage: {TEXTS[0]}"), atol=2e-6)
    question = prompted.embed_question(TEXTS[0])
    np.testing.assert_allclose(question, prompted._network.encode(f"query: {TEXTS[0]}"), atol=2e-6)
    assert question.dtype == np.float32
    assert question.shape == (384,)


def test_settings_reach_torch(engine_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        loaded = load_model(
            replace(engine_settings, threads=2, model="bge", model_revision="r1", token_budget=99)
        )
        assert torch.get_num_threads() == 2
        assert (loaded.name, loaded.revision, loaded.token_budget) == ("bge", "r1", 99)
        assert loaded.device == "cpu"
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    model_module._environment(replace(engine_settings, cuda_visible_devices="GPU-4f3c"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-4f3c"


def test_cuda_that_is_not_there_is_refused(
    engine_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert model_module._device(replace(engine_settings, device="auto")) == "cpu"
    with pytest.raises(SettingsError, match=r"SEMANTIK_DEVICE=cuda, .* sees no GPU .*GPU-1"):
        load_model(replace(engine_settings, device="cuda", cuda_visible_devices="GPU-1"))


def test_the_memory_cap_becomes_a_fraction_of_the_card(
    engine_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only torch's allocator is stood in for; its call stops the load, which needs a GPU."""

    class Capped(Exception):
        pass

    def cap(fraction: float, device: int) -> None:
        raise Capped(fraction, device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30)
    )
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", cap)
    with pytest.raises(Capped) as caught:
        load_model(replace(engine_settings, device="cuda", model_max_memory_gb=20.0))
    assert caught.value.args == (0.25, 0)


def test_half_precision_follows_the_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_module._half_precision(model._network) == torch.float16
    monkeypatch.setattr(model._network[0].auto_model.config, "dtype", torch.bfloat16)
    assert model_module._half_precision(model._network) == torch.bfloat16
