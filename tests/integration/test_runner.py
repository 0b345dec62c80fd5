"""The runner with a real model and real documents, in this process: what it puts down to whom."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import Bench
from cluster import Cluster

from semantik import runner as module
from semantik.chunking import Chunker
from semantik.leases import Keeper
from semantik.model import Model, load_model
from semantik.pulse import Pulse
from semantik.runner import Runner
from semantik.slots import Slot


class Panic(BaseException):
    """As what Rust's panics come to Python as."""


@pytest.fixture(scope="module")
def model(idle_cluster: Cluster) -> Model:
    return load_model(idle_cluster.settings("worker", SEMANTIK_DEVICE="cpu"))


@pytest.fixture
def run(bench: Bench, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Run a shard of the bench, whose documents are there."""
    monkeypatch.setattr(module, "IDLE_PAUSE", 0.0)
    for (uri,) in bench.cluster.rows("SELECT uri FROM job_documents WHERE job_id = %s", bench.job):
        Path(uri).write_text(f"A ladder for {uri}.\n", encoding="utf-8")
    (tmp_path / "run").mkdir()
    settings = bench.cluster.settings("worker", SEMANTIK_SLOT="a:0", RUNTIME_DIRECTORY=str(tmp_path / "run"))
    pulse = Pulse()
    keeper = Keeper(settings, lambda _connection: None, "test keeper")
    return Runner(settings, model, Slot(settings, pulse), keeper, pulse, pulse.child(0)).run


@contextmanager
def inodes(directory: Path, count: int) -> Iterator[None]:
    """Let there be room for so few files, the directory among them."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=64k,nr_inodes={count}", "tmpfs", directory], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def test_chunks_that_the_model_cannot_make_condemn_no_document(
    bench: Bench, run: Callable[[int], None]
) -> None:
    with bench.cluster.superuser() as connection:
        connection.execute(
            "UPDATE collections SET chunk_tokens = 256, chunk_overlap = 200 "
            "WHERE id = (SELECT collection_id FROM jobs WHERE id = %s)",
            (bench.job,),
        )
    for _ in range(4):
        run(bench.shard)
    state, crashes, documents, error = bench.row("state, crashes, documents, error")
    assert (state, crashes, documents) == ("pending", 0, 3)
    assert "SEMANTIK_CHUNK_OVERLAP=200" in error


@pytest.mark.parametrize("kind", [ValueError, Panic])
def test_a_document_that_cannot_be_cut_takes_no_other_with_it(
    bench: Bench, run: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    ((culprit, uri),) = bench.cluster.rows(
        "SELECT document_id, uri FROM job_documents WHERE job_id = %s ORDER BY document_id OFFSET 1 LIMIT 1",
        bench.job,
    )
    cut = Chunker.cut

    def fails(self: Chunker, text: str, *rest: Any) -> Any:
        if uri in text:
            raise kind("no such character")
        return cut(self, text, *rest)

    monkeypatch.setattr(Chunker, "cut", fails)
    for _ in range(2):
        run(bench.shard)
    apart = bench.cluster.rows(
        "SELECT s.id, s.crashes, jd.document_id FROM shards s JOIN job_documents jd ON jd.shard_id = s.id "
        "WHERE s.job_id = %s AND s.id <> %s",
        bench.job, bench.shard,
    )  # fmt: skip
    assert [row[1:] for row in apart] == [(2, culprit)]
    assert bench.row("state, crashes, documents") == ("pending", 0, 2)
    run(apart[0][0])
    run(bench.shard)
    outcomes = bench.cluster.rows(
        "SELECT document_id = %s, outcome, left(error, 38) FROM job_documents WHERE job_id = %s ORDER BY 1",
        culprit, bench.job,
    )  # fmt: skip
    assert outcomes == [
        (False, "embedded", None),
        (False, "embedded", None),
        (True, "failed", "quarantined: its worker crashed 3 time"),
    ]


def test_a_row_that_cannot_be_written_is_its_documents_fault(
    bench: Bench, run: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ((culprit,),) = bench.cluster.rows(
        "SELECT max(document_id) FROM job_documents WHERE job_id = %s", bench.job
    )
    write_row = psycopg.Copy.write_row

    def refused(self: psycopg.Copy[Any], row: Any) -> None:
        if row[0] == culprit and len(row) == 6:
            raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
        write_row(self, row)

    monkeypatch.setattr(psycopg.Copy, "write_row", refused)
    for _ in range(2):
        run(bench.shard)
    apart = bench.cluster.rows(
        "SELECT jd.document_id FROM shards s JOIN job_documents jd ON jd.shard_id = s.id "
        "WHERE s.job_id = %s AND s.id <> %s",
        bench.job, bench.shard,
    )  # fmt: skip
    assert apart == [(culprit,)]


def test_a_slot_that_cannot_note_what_it_holds_gives_it_back(
    bench: Bench, run: Callable[[int], None], tmp_path: Path
) -> None:
    with inodes(tmp_path / "run", 1):
        run(bench.shard)
    state, crashes, expiries, error = bench.row("state, crashes, expiries, error")
    assert (state, crashes, expiries) == ("pending", 0, 0)
    assert "No space left on device" in error
    run(bench.shard)
    assert bench.row("state, documents_done") == ("done", 3)


def test_a_slot_that_cannot_note_any_more_goes_on(
    bench: Bench, run: Callable[[int], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with inodes(tmp_path / "run", 2):  # one for the first note, none for the draft of the next
        run(bench.shard)
    assert bench.row("state, crashes, documents_done") == ("done", 0, 3)
    assert caplog.text.count("what is in flight cannot be noted") == 1
