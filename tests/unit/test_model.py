"""The model: what its directory says, what it gives, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import FakeGpu

from semantik import device
from semantik import model as model_module
from semantik.exceptions import SettingsError
from semantik.model import Model, Pending, describe_model, load_model
from semantik.precision import min_cosine
from semantik.prompts import document_prompt
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


def test_a_downloaders_hidden_files_are_no_part_of_the_model(copied: Path) -> None:
    before = describe_model(copied)
    (copied / ".cache" / "hub").mkdir(parents=True)
    (copied / ".cache" / "hub" / "lock").write_text("1")
    (copied / ".gitattributes").write_text("*.bin filter=lfs\n")
    assert describe_model(copied) == before
    (copied / "extra.txt").write_text("part of it")
    assert describe_model(copied).revision != before.revision


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


def test_weights_that_were_cut_off_are_named(copied: Path, engine_settings: Settings) -> None:
    weights = copied / "model.safetensors"
    with weights.open("rb") as file:
        beginning = file.read(1_000_000)
    weights.unlink()
    weights.write_bytes(beginning)
    with pytest.raises(
        SettingsError, match=f"the model in {copied} cannot be loaded: its weights are damaged"
    ):
        load_model(replace(engine_settings, model_dir=str(copied)))


def test_a_file_of_the_model_that_cannot_be_read_is_named(copied: Path) -> None:
    unreadable = copied / "notes.txt"
    unreadable.symlink_to("/proc/self/mem")  # there is nothing at its beginning: an error, also for root
    with pytest.raises(SettingsError, match=f"{unreadable} cannot be read: Input/output error"):
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
            replace(
                engine_settings, threads=2, role="query", model="bge", model_revision="r1", token_budget=99
            )
        )
        assert torch.get_num_threads() == 2
        assert (loaded.name, loaded.revision, loaded.token_budget) == ("bge", "r1", 99)
        assert loaded.device == "cpu"
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    device.environment(replace(engine_settings, cuda_visible_devices="GPU-4f3c"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-4f3c"


def test_cuda_that_is_not_there_is_refused(
    engine_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.choose(replace(engine_settings, device="auto")) == "cpu"
    of_a_gpu = replace(engine_settings, device="auto", slot="gpu1:0", cuda_visible_devices="GPU-1")
    with pytest.raises(SettingsError, match=r"slot gpu1:0 has a GPU, but .* sees no GPU .*GPU-1"):
        device.choose(of_a_gpu)
    assert device.choose(replace(of_a_gpu, device="cpu")) == "cpu"
    assert device.choose(replace(of_a_gpu, cuda_visible_devices="")) == "cpu"
    with pytest.raises(SettingsError, match=r"SEMANTIK_DEVICE=cuda, .* sees no GPU .*GPU-1"):
        load_model(replace(engine_settings, device="cuda", cuda_visible_devices="GPU-1"))


def test_documents_take_the_prompt_that_encode_document_takes(model: Model) -> None:
    """`passage` and `corpus` are names that models use too, and a default comes last."""
    network = SimpleNamespace(
        prompts={"corpus": "c: ", "passage": "p: ", "query": "q: "}, default_prompt_name="query"
    )
    assert document_prompt(network) == "p: "
    network.prompts = {"query": "q: "}
    assert document_prompt(network) == "q: "
    network.default_prompt_name = None
    assert document_prompt(network) == ""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Leave torch with the one thread that the other tests have."""
    yield
    torch.set_num_threads(1)


def test_a_cpu_with_several_threads_computes_a_batch_on_each(
    model: Model, engine_settings: Settings, one_thread: None
) -> None:
    shared = load_model(replace(engine_settings, threads=2))
    assert (shared.depth, torch.get_num_threads()) == (3, 1)
    batches = [[ids_of(model, f"{word} of the sea. " * times) for times in (1, 9, 30)] for word in "abcdefgh"]
    seen: set[str] = set()
    launch = shared.launch

    def named(batch: Any) -> Pending:
        seen.add(threading.current_thread().name)
        return launch(batch)

    shared.launch = named  # type: ignore[method-assign]
    pending = [shared.start(batch) for batch in batches]
    for batch, own in zip(batches, pending, strict=True):
        assert np.array_equal(own.result(), model.embed_ids(batch)), "the bits of one thread alone"
    assert seen == {"forward_0", "forward_1"}
    with pytest.raises(IndexError):
        shared.start([np.array([10**9])]).result()


def test_a_worker_of_questions_has_all_threads_for_one(engine_settings: Settings, one_thread: None) -> None:
    asked = load_model(replace(engine_settings, threads=2, role="query"))
    assert (asked.depth, torch.get_num_threads()) == (1, 2)


def on_gpu(settings: Settings, **changes: Any) -> Model:
    """The model on the stand-in, in float32 and without a measured budget, to be compared with the CPU's."""
    return load_model(
        replace(settings, **{"device": "cuda", "precision": "float32", "token_budget": 1000} | changes)
    )


def test_batches_are_in_flight_until_their_results_are_asked_for(
    model: Model, engine_settings: Settings, gpu: FakeGpu
) -> None:
    fast = on_gpu(engine_settings)
    assert (model.depth, fast.depth) == (1, 3)
    batches = [[ids_of(model, text), ids_of(model, text[:20])] for text in TEXTS]
    waited = gpu.waited
    pending = [fast.start(batch) for batch in batches]
    assert gpu.waited == waited
    for batch, one in zip(reversed(batches), reversed(pending), strict=True):
        np.testing.assert_allclose(one.result(), model.embed_ids(batch), atol=2e-6)
        np.testing.assert_array_equal(one.result(), one.result())
    assert gpu.waited == waited + 3


def test_more_batches_than_buffers_and_one_that_nobody_asks_for(
    model: Model, engine_settings: Settings, gpu: FakeGpu
) -> None:
    """Host memory of a batch is used again by a later one: never before its vectors are out of it."""
    fast = on_gpu(engine_settings)
    batches = [[ids_of(model, f"{text} {number}")] for number in range(5) for text in TEXTS]
    pending = [fast.start(batch) for batch in batches]
    del pending[1]
    buffers = gpu.pinned
    for batch, one in zip(batches[:1] + batches[2:], pending, strict=True):
        np.testing.assert_allclose(one.result(), model.embed_ids(batch), atol=2e-6)
    for batch in batches:
        fast.embed_ids(batch)
    assert gpu.pinned == buffers


def test_questions_on_a_gpu(model: Model, engine_settings: Settings, gpu: FakeGpu) -> None:
    fast = on_gpu(engine_settings, precision="bfloat16")
    question = fast.embed_question(TEXTS[1])
    assert question.dtype == np.float32
    assert min_cosine(question[None], model.embed_question(TEXTS[1])[None]) > 0.999
