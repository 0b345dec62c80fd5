"""A job from its submission to its result, with everything up."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from celery.exceptions import TaskRevokedError
from cluster import Cluster
from documents import write
from services import PATIENCE, wait_for

from semantik import collections, jobs, reports
from semantik.database import connect
from semantik.exceptions import JobFailed, NotFound, Refused
from semantik.progress import progress
from semantik.scheduler import Scheduler


def test_a_job_completes_and_the_next_finds_only_what_changed(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write(folder, 30)
    first = cluster.finish(cluster.submit(folder, "changes"))
    assert first.state == "completed", first
    assert cluster.outcomes(first) == {"embedded": 30}
    result = cluster.app.AsyncResult(str(first.id)).get(timeout=10 * PATIENCE)
    assert (result["state"], result["documents_done"], result["truncated_tokens"]) == ("completed", 30, 0)

    again = cluster.finish(cluster.submit(folder, "changes"))
    assert again.state == "completed"
    assert (again.listed, again.unchanged, cluster.outcomes(again)) == (30, 30, {})

    (folder / "document-0000.txt").write_text(
        "Something else entirely is written here now.\n", encoding="utf-8"
    )
    os.utime(folder / "document-0001.txt", (time.time(), time.time() + 5))
    (folder / "document-0002.txt").unlink()
    (folder / "document-9999.txt").write_text("A new document.\n", encoding="utf-8")
    third = cluster.finish(cluster.submit(folder, "changes"))
    assert third.state == "completed"
    # Touched without a change of content: the hash is the same, and nothing is embedded.
    assert cluster.outcomes(third) == {"embedded": 2, "skipped": 1, "removed": 1}
    with cluster.connection() as connection:
        found = collections.show(connection, "changes")
    assert (found.documents, found.failed, found.chunks) == (30, 0, 30)


def test_a_scheduler_that_wakes_behind_its_successor_leaves_the_result_as_it_was(
    cluster: Cluster, tmp_path: Path
) -> None:
    """It has read that the job is at work, froze, and goes on when the other has told its end."""
    write(tmp_path / "docs", 2)
    job = cluster.finish(cluster.submit(tmp_path / "docs", "woken"))
    result = cluster.app.AsyncResult(str(job.id))
    result.get(timeout=10 * PATIENCE)
    late = Scheduler(cluster.settings("scheduler"), cluster.app)
    with cluster.app.connection_for_write() as broker, connect(late.settings) as connection:
        now = replace(progress(connection, str(job.id)), state="running")
        reports.progress(cluster.app, broker, str(job.id), None, now)
        late._reported[str(job.id)] = now
    assert cluster.app.AsyncResult(str(job.id)).state == reports.PROGRESS
    with connect(late.settings, autocommit=True) as connection:  # once its own session is ended
        late.tell_again(connection)
    wait_for(
        lambda: cluster.app.AsyncResult(str(job.id)).state == "SUCCESS", what="its successor to tell it again"
    )


def test_vectors_are_those_of_the_question_worker(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write(folder, 3, words=400, seed=5)
    job = cluster.finish(cluster.submit(folder, "vectors"))
    ((key,),) = cluster.rows("SELECT id FROM collections WHERE name = 'vectors'")
    rows = cluster.rows(f"SELECT text, embedding::text FROM chunks_{key}")
    assert len(rows) > 3, job
    for text, vector in rows:
        stored = np.array([float(value) for value in vector.strip("[]").split(",")])
        task = cluster.app.send_task("semantik.tasks.embed_query_task", args=[text], queue="query")
        asked = np.array(task.get(timeout=60 * PATIENCE))
        assert stored @ asked / np.linalg.norm(stored) / np.linalg.norm(asked) > 0.9999


def test_documents_that_fail_are_named_and_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write(folder, 4)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 nothing of the kind")
    (os.fsencode(folder) + b"/caf\xe9.txt")
    with open(os.fsencode(folder) + b"/caf\xe9.txt", "wb") as file:  # noqa: PTH123 (a name that is no text)
        file.write(b"A name in Latin-1.")
    job = cluster.finish(cluster.submit(folder, "failures"))
    assert job.state == "completed_with_errors"
    with cluster.connection() as connection:
        failed = {Path(failure.uri).name: failure.error for failure in jobs.failures(connection, job.id)}
    assert set(failed) == {"broken.pdf", "caf\\xe9.txt"}
    assert "UTF-8" in failed["caf\\xe9.txt"]

    (folder / "broken.pdf").unlink()
    (folder / "broken.pdf").write_text("", encoding="utf-8")
    again = cluster.finish(cluster.submit(folder, "failures"))
    assert again.unchanged == 4, "failed documents are planned again"

    only = tmp_path / "only"
    only.mkdir()
    (only / "broken.pdf").write_bytes(b"%PDF-1.7 nothing of the kind")
    hopeless = cluster.finish(cluster.submit(only, "hopeless"))
    assert hopeless.state == "failed"
    assert hopeless.error and "none of 1 documents" in hopeless.error


def test_a_listing_that_would_empty_a_collection_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write(folder, 8)
    cluster.finish(cluster.submit(folder, "guarded"))
    for path in sorted(folder.iterdir())[:5]:
        path.unlink()
    half = cluster.finish(cluster.submit(folder, "guarded"))
    assert half.state == "failed"
    assert half.error and "5 of the 8" in half.error and "--allow-removal" in half.error
    with pytest.raises(JobFailed, match="5 of the 8"):
        cluster.app.AsyncResult(str(half.id)).get(timeout=10 * PATIENCE)

    for path in folder.iterdir():
        path.unlink()
    empty = cluster.finish(cluster.submit(folder, "guarded"))
    assert empty.state == "failed"
    assert empty.error and "is empty" in empty.error
    with cluster.connection() as connection:
        assert collections.show(connection, "guarded").documents == 8

    meant = cluster.finish(cluster.submit(folder, "guarded", allow_removal=True))
    assert meant.state == "completed"
    assert cluster.outcomes(meant) == {"removed": 8}

    folder.rmdir()
    nowhere = cluster.finish(cluster.submit(folder, "guarded"))
    assert nowhere.state == "failed"
    assert nowhere.error and "does not exist" in nowhere.error


def test_a_second_job_of_a_collection_waits_its_turn(cluster: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "one", 40)
    write(tmp_path / "two", 2, seed=2)
    with cluster.slowed():
        first = cluster.submit(tmp_path / "one", "turns")
        cluster.wait_running(first)
        second = cluster.submit(tmp_path / "two", "turns")
        wait_for(lambda: cluster.app.AsyncResult(str(first.id)).state == "PROGRESS", what="PROGRESS")
        assert cluster.get(second).state == "queued"
        with cluster.connection() as connection, pytest.raises(Refused, match="has not ended"):
            collections.drop(connection, "turns")
    first, second = cluster.finish(first), cluster.finish(second)
    assert (first.state, second.state) == ("completed", "completed")
    assert first.finished_at and second.started_at and first.finished_at <= second.started_at
    with cluster.connection() as connection:
        collections.drop(connection, "turns")
        with pytest.raises(NotFound):
            collections.show(connection, "turns")


def test_cancel_stops_a_job_and_keeps_the_collection_whole(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write(folder, 60)
    with cluster.slowed():
        job = cluster.submit(folder, "cancelled")
        cluster.wait_running(job)
        with cluster.connection() as connection:
            assert jobs.cancel(connection, job.id).state == "cancelled"
            with pytest.raises(Refused, match="already ended"):
                jobs.cancel(connection, job.id)
        wait_for(
            lambda: not cluster.rows("SELECT FROM slots WHERE state = 'busy'"),
            seconds=8,
            what="the slots to stop",
        )
    cluster.check_collection("cancelled")
    assert cluster.rows(
        "SELECT DISTINCT state FROM shards WHERE job_id = %s AND state <> 'done'", str(job.id)
    ) == [("cancelled",)]
    with pytest.raises(TaskRevokedError):
        cluster.app.AsyncResult(str(job.id)).get(timeout=10 * PATIENCE)
    assert cluster.finish(cluster.submit(folder, "cancelled")).state == "completed"


def test_a_large_collection_gets_its_index(cluster: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "docs", 120, words=10)
    cluster.finish(cluster.submit(tmp_path / "docs", "indexed"))
    with cluster.connection() as connection:
        found = wait_for(
            lambda: (now := collections.show(connection, "indexed")).index_state == "ready" and now,
            what="the index",
        )
    assert cluster.rows("SELECT FROM pg_indexes WHERE indexname = %s", f"chunks_{found.id}_embedding")


def test_each_slot_answers_for_itself_and_users_tasks_run(cluster: Cluster) -> None:
    for number in (0, 1):
        answer = cluster.app.send_task("semantik.tasks.test_task", queue=f"slot.here.{number}").get(
            timeout=20 * PATIENCE
        )
        assert (answer["host"], answer["slot"], answer["device"]) == ("here", f"here:{number}", "cpu")
        assert answer["model"] == "all-MiniLM-L6-v2"
    counted = cluster.app.send_task("faults.count_words", args=["three short words"], queue="slot.here.0")
    assert counted.get(timeout=20 * PATIENCE) == 3


def test_each_part_tells_systemd_that_it_is_ready_and_alive(cluster: Cluster) -> None:
    for name in ("scheduler", "planner", "query", "worker0", "worker1"):
        told = cluster.told(name)
        assert "READY=1" in told, name
        assert "WATCHDOG=1" in told, name
