"""`semantik embed` below its command line: all or nothing, and the same bytes however often it broke."""

from __future__ import annotations

import hashlib
import json
import os
import pydoc_data.topics
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from semantik import local, parts, vectors
from semantik.engine import Stopped
from semantik.exceptions import NotFound, Refused, SettingsError
from semantik.model import Model
from semantik.parts import Progress, Request, Summary
from semantik.settings import Settings


class Watched:
    """Keeps what a view is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown: list[Progress] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, progress: Progress) -> None:
        self.shown.append(replace(progress))


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def loaded(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model, loaded once."""
    monkeypatch.setattr(parts, "load_model", lambda settings: model)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Small texts, one that fails and one without text."""
    root = tmp_path / "documents"
    root.mkdir()
    for name, text in sorted(pydoc_data.topics.topics.items())[:14]:
        (root / f"{name}.txt").write_text(text[:300])
    (root / "broken.pdf").write_bytes(b"no PDF at all")
    (root / "empty.txt").write_bytes(b"")
    return root


@pytest.fixture
def request_(documents: Path, tmp_path: Path, engine_settings: Settings) -> Request:
    # A small budget makes small groups: about 1 KB, three or four of these documents.
    settings = replace(engine_settings, chunk_tokens=32, chunk_overlap=4, token_budget=4, parser_count=1)
    return Request(str(documents), tmp_path / "v.parquet", settings)


def embed(request: Request, should_stop: Callable[[], bool] = never) -> Summary:
    return local.embed(request, Watched(), should_stop)


def made(request: Request) -> tuple[bytes, bytes]:
    """Return the bytes of the output and of its report, and see that nothing else is left."""
    report = request.output.with_name("v.parquet.report.jsonl")
    names = {item.name for item in request.output.parent.iterdir()}
    assert names == {"documents", "v.parquet", "v.parquet.report.jsonl"}
    return request.output.read_bytes(), report.read_bytes()


def test_the_file_holds_every_chunk_and_the_report_the_rest(
    request_: Request, documents: Path, model: Model
) -> None:
    view = Watched()
    summary = local.embed(request_, view, never)
    made(request_)
    found = pq.read_table(request_.output).to_pylist()
    assert found == sorted(found, key=lambda row: (row["document"], row["ordinal"]))
    texts = {path for path in documents.glob("*.txt") if path.name != "empty.txt"}
    assert {row["document"] for row in found} == {str(path) for path in texts}
    for path in texts:
        own = [row for row in found if row["document"] == str(path)]
        assert [row["ordinal"] for row in own] == list(range(len(own)))
        assert {row["content_hash"] for row in own} == {hashlib.sha256(path.read_bytes()).hexdigest()}
        assert all(row["text"] in path.read_text() for row in own)
    for row in random.Random(1).sample(found, 10):
        theirs = model._network.encode(row["text"])
        assert float(np.dot(row["embedding"], theirs) / np.linalg.norm(row["embedding"])) > 0.9999
    counts = summary.counts
    assert (counts.documents, counts.embedded, counts.failed) == (16, 15, 1)
    assert (counts.chunks, counts.tokens) == (len(found), sum(row["token_count"] for row in found))
    assert (counts.truncated_tokens, summary.state) == (0, "completed_with_errors")
    lines = [json.loads(line) for line in Path(str(summary.report)).read_text().splitlines()]
    assert [(Path(line["document"]).name, line["outcome"]) for line in lines] == [
        ("broken.pdf", "failed"),
        ("empty.txt", "embedded"),
    ]
    assert lines[0]["reason"].startswith("not a PDF")
    assert lines[1]["reason"] == "holds no text"
    header = vectors.read_header(request_.output)
    assert (header["model_revision"], header["dim"]) == (model.revision, 384)
    assert (header["chunk_tokens"], header["chunk_overlap"]) == (32, 4)
    last = view.shown[-1]
    assert (last.documents_done, last.failed, last.chunks) == (16, 1, counts.chunks)
    assert summary.tokens_per_second > 0
    assert last.seconds_left() == 0.0


def test_what_has_not_changed_is_left_alone(
    request_: Request, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed(request_)
    before, stamp = made(request_), request_.output.stat().st_mtime_ns
    with monkeypatch.context() as context:
        context.setattr(parts, "load_model", lambda settings: pytest.fail("the model is not needed"))
        again = embed(request_)
    assert again.unchanged
    assert (again.counts, again.state, again.remarks) == (first.counts, first.state, first.remarks)
    assert (made(request_), request_.output.stat().st_mtime_ns) == (before, stamp)
    forced = embed(replace(request_, force=True))
    assert (forced.unchanged, forced.taken_over) == (False, 0)
    assert made(request_) == before
    assert request_.output.stat().st_mtime_ns > stamp
    (documents / "broken.pdf").unlink()
    (documents / "empty.txt").unlink()
    changed = embed(request_)
    assert (changed.unchanged, changed.state, changed.report) == (False, "completed", None)
    assert not request_.output.with_name("v.parquet.report.jsonl").exists()


def test_other_settings_are_not_what_was_there(request_: Request) -> None:
    embed(request_)
    chunks = pq.read_table(request_.output).num_rows
    other = embed(replace(request_, settings=replace(request_.settings, chunk_tokens=64)))
    assert not other.unchanged
    assert other.counts.chunks < chunks


class Crash(BaseException):
    """Stands for the end of the process: nothing may handle it."""


class Crashes:
    """Ends the process, as it were, before or after one of the steps that make a file what it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after = 0
        for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "rmdir"), (os, "fsync")):
            monkeypatch.setattr(owner, name, self._crashing(getattr(owner, name)))

    def _crashing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            self._count()
            result = real(*arguments, **named)
            self._count()
            return result

        return step

    def _count(self) -> None:
        self.after -= 1
        if self.after == 0:
            raise Crash


def test_crashes_while_parts_are_written_cost_no_more_than_the_part(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(request_)
    wanted = made(request_)
    forced = replace(request_, force=True)
    with monkeypatch.context() as context:
        crashes = Crashes(context)
        for steps in range(1, 7):  # a step further each time, past the first part and into the next ones
            crashes.after = steps
            with pytest.raises(Crash):
                embed(forced)
            assert request_.output.read_bytes() == wanted[0], "the old file stays"
        crashes.after = 0
        assert embed(forced).taken_over > 0
    assert made(request_) == wanted


def test_crashes_at_every_step_of_the_end_leave_all_or_nothing(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(request_)
    wanted = made(request_)
    work, kept = request_.output.with_name(".v.parquet.parts"), tmp_path.with_name(f"{tmp_path.name}-kept")
    with monkeypatch.context() as context, pytest.raises(Stopped):
        context.setattr(vectors, "read", lambda path: (_ for _ in ()).throw(Stopped("told to stop")))
        embed(replace(request_, force=True))
    shutil.copytree(work, kept)
    states = set()
    for steps in range(1, 1_000):
        for path in (request_.output, request_.output.with_name("v.parquet.report.jsonl")):
            path.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(kept, work)
        with monkeypatch.context() as context:
            Crashes(context).after = steps
            try:
                embed(request_)
                break
            except Crash:
                states.add((request_.output.exists(), work.exists()))
        if request_.output.exists():
            assert request_.output.read_bytes() == wanted[0]
        assert embed(request_).counts.documents == 16
        assert made(request_) == wanted
    assert states == {(False, True), (True, True), (True, False)}


def once_begun(request: Request, count: int = 1) -> Callable[[], bool]:
    """Stop a run when so many of its parts are there."""
    work = request.output.with_name(".v.parquet.parts")
    return lambda: len(list(work.glob("*.parquet"))) >= count


def test_a_run_goes_on_where_it_was_stopped(request_: Request) -> None:
    embed(request_)
    wanted = made(request_)
    forced = replace(request_, force=True)
    with pytest.raises(Stopped):
        embed(forced, once_begun(request_))
    kept = sorted(request_.output.with_name(".v.parquet.parts").glob("*.parquet"))
    assert len(kept) > 0
    assert request_.output.read_bytes() == wanted[0], "the old file stays until the new one is complete"
    again = embed(forced)
    assert 0 < again.taken_over < again.counts.documents
    assert made(request_) == wanted
    with pytest.raises(Stopped):
        embed(forced, once_begun(request_))
    assert embed(replace(forced, restart=True)).taken_over == 0
    assert made(request_) == wanted


def test_a_document_that_changed_between_two_runs_is_embedded_again(
    request_: Request, documents: Path
) -> None:
    with pytest.raises(Stopped):
        embed(request_, once_begun(request_, 2))
    first = min(documents.glob("*.txt"))
    first.write_text(("This text came between two runs. " * 10)[: first.stat().st_size])
    summary = embed(request_)
    assert summary.taken_over > 0
    own = [row for row in pq.read_table(request_.output).to_pylist() if row["document"] == str(first)]
    assert own
    assert all("came between two runs" in row["text"] for row in own)


def test_a_document_that_changes_while_it_is_read_is_remarked(
    request_: Request, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parts.sources.open_source
    grows, goes = documents / "assert.txt", documents / "await.txt"
    assert grows.exists() and goes.exists()

    def opened(uri: str, *, most_bytes: int = 0) -> int:
        if uri == str(grows):
            with grows.open("a") as file:
                file.write(" And more of it.")
        if uri == str(goes):
            goes.unlink()
        return real(uri, most_bytes=most_bytes)

    monkeypatch.setattr(parts.sources, "open_source", opened)
    summary = embed(request_)
    remarks = {Path(remark.document).name: remark for remark in summary.remarks}
    assert remarks["assert.txt"].outcome == "embedded"
    assert remarks["assert.txt"].reason.startswith("changed after it was listed")
    assert (remarks["await.txt"].outcome, remarks["await.txt"].reason) == (
        "failed",
        "was gone when it was to be read",
    )
    monkeypatch.setattr(parts.sources, "open_source", real)
    again = embed(request_)
    assert not again.unchanged
    assert {Path(remark.document).name for remark in again.remarks} == {"broken.pdf", "empty.txt"}


def test_what_is_not_to_be_replaced(request_: Request, documents: Path, tmp_path: Path) -> None:
    request_.output.write_text("something dear")
    with pytest.raises(Refused, match=r"cannot be read as Parquet.*--force replaces it"):
        embed(request_)
    assert request_.output.read_text() == "something dear"
    embed(replace(request_, force=True))
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("words")
    with pytest.raises(
        Refused, match=r"holds the vectors of .*documents: name another file, or give --force"
    ):
        embed(replace(request_, root=str(other)))
    assert embed(replace(request_, root=str(other), force=True)).counts.documents == 1


def test_nothing_to_embed(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(NotFound, match="there are no documents under"):
        embed(replace(request_, root=str(tmp_path / "nothing")))
    assert not request_.output.with_name(".v.parquet.parts").exists()


def test_settings_of_a_process_alone() -> None:
    with pytest.raises(
        SettingsError, match=r"no model is named: give --model DIR, or set SEMANTIK_MODEL_DIR"
    ):
        local.settings_for({})
    env = {"SEMANTIK_MODEL_DIR": "/models/a", "SEMANTIK_THREADS": "3", "SEMANTIK_CHUNK_TOKENS": "64"}
    found = local.settings_for(env, model_dir="/models/b", threads=None, chunk_tokens=128)
    assert (found.model_dir, found.threads, found.chunk_tokens) == ("/models/b", 3, 128)
    assert (found.broker_url, found.database_url) == ("", "")
    with pytest.raises(SettingsError, match="SEMANTIK_THREADS='many' is not a number"):
        local.settings_for({**env, "SEMANTIK_THREADS": "many"})
