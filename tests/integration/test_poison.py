"""Documents that end the process that embeds them, and processes that end for other reasons."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from documents import write
from services import wait_for

from semantik import jobs, notes


@contextlib.contextmanager
def memory_limit(name: str, megabytes: int) -> Iterator[Path]:
    """Yield the `cgroup.procs` of a memory cgroup; whoever is in it is killed beyond the limit."""
    first = Path("/sys/fs/cgroup/memory")
    group = (first if first.is_dir() else Path("/sys/fs/cgroup")) / name
    group.mkdir()
    try:
        limit = "memory.limit_in_bytes" if first.is_dir() else "memory.max"
        (group / limit).write_text(str(megabytes << 20))
        yield group / "cgroup.procs"
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text().split(), what="the cgroup to be empty")
        group.rmdir()


def test_a_document_that_takes_all_memory_is_quarantined(cluster: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "docs", 30)
    (tmp_path / "docs" / "greedy.txt").write_text("A pound of marzipan, please.\n", encoding="utf-8")
    job = cluster.submit(tmp_path / "docs", "greedy")
    held: dict[str, int] = {}

    def enclosed(procs: Path) -> bool:
        """Put each new child under the limit, until the job is through."""
        for name in ("worker0", "worker1"):
            with contextlib.suppress(IndexError, ProcessLookupError, FileNotFoundError, OSError):
                child = cluster.child(name)
                if held.get(name) != child:
                    procs.write_text(str(child))
                    held[name] = child
        return cluster.get(job).state not in ("queued", "planning", "running")

    with memory_limit(f"semantik-test-{os.getpid()}", 2500) as procs:
        wait_for(lambda: enclosed(procs), seconds=240, what="the job's end")
        for child in set(held.values()):
            with contextlib.suppress(ProcessLookupError, OSError):
                (procs.parent.parent / "cgroup.procs").write_text(str(child))
    done = cluster.finish(job)
    assert done.state == "completed_with_errors"
    assert cluster.outcomes(job) == {"embedded": 30, "failed": 1}
    with cluster.connection() as connection:
        (failure,) = jobs.failures(connection, job.id)
    assert failure.uri.endswith("/greedy.txt")
    assert failure.error.startswith("quarantined: its worker crashed 3 times") and "signal 9" in failure.error


def test_a_crash_while_postgresql_is_away_is_counted_once(cluster: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "docs", 40)
    try:
        with cluster.slowed():
            job = cluster.submit(tmp_path / "docs", "crash-away")
            shard, slot = cluster.wait_running(job)
            name = f"worker{slot[-1]}"
            cluster.stop("scheduler")  # or the lease, which runs out meanwhile, may be taken back first
            child = cluster.child(name)
            cluster.services.stop("postgres", signal.SIGINT)
            os.kill(child, signal.SIGKILL)
            wait_for(
                lambda: f"crash not recorded yet job={job.id} shard={shard}" in cluster.log(name).read_text(),
                what="the parent to give up",
            )
            cluster.services.start_postgres()
        wait_for(
            lambda: cluster.rows("SELECT crashes FROM shards WHERE id = %s", shard) == [(1,)],
            seconds=60,
            what="the crash to be counted",
        )
    finally:
        if "scheduler" not in cluster.processes:
            cluster.start_scheduler()
    assert cluster.finish(job, seconds=120).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 40}
    assert cluster.rows("SELECT crashes FROM shards WHERE id = %s", shard) == [(1,)]
    assert not list(Path(cluster.runtime(name)).glob("shard-*.json"))
    text = "".join(cluster.log(f"worker{number}").read_text() for number in (0, 1))
    assert text.count(f"crashed job={job.id} shard={shard}") == 1


def test_a_child_that_dies_before_it_claims_is_told_with_its_job(
    idle_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from semantik import celery_app, worker

    settings = idle_cluster.settings("worker", RUNTIME_DIRECTORY=str(tmp_path / "run"))
    monkeypatch.setattr(celery_app, "settings", settings)
    job = idle_cluster.submit(tmp_path, "unclaimed", send=False)
    ((shard,),) = idle_cluster.rows(
        "INSERT INTO shards (job_id, number, documents, bytes) VALUES (%s, 1, 1, 1) RETURNING id", str(job.id)
    )
    worker.record_crash(shard, "signal 9")
    assert f"child lost job={job.id} shard={shard}" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"), [("born", "another-boot-1"), ("born", ""), ("parent_born", "another-boot-1")]
)
def test_a_note_whose_processes_are_others_by_now_says_so(
    idle_cluster: Cluster, tmp_path: Path, field: str, value: str
) -> None:
    settings = idle_cluster.settings("worker", RUNTIME_DIRECTORY=str(tmp_path))
    notes.write(settings, 3, 1, [7])
    path = tmp_path / "shard-3.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    note = notes.read(settings, 3)
    assert note is not None
    gone = note.pid if field == "born" else note.parent
    assert gone == 0 and not notes.alive(gone)
    path.write_text("{")
    assert notes.read(settings, 3) is None, "a host that lost its power may leave half a note"


def test_parent_and_child_killed_together_cost_a_lease_and_no_document(
    cluster: Cluster, tmp_path: Path
) -> None:
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "together")
        shard, slot = cluster.wait_running(job)
        number = int(slot[-1])
        cluster.stop(f"worker{number}", signal.SIGKILL)
        # As systemd does at once, with what the killed ones left in its runtime directory.
        cluster.start_worker(number)
    assert cluster.finish(job, seconds=120).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 60}
    assert cluster.rows("SELECT crashes, expiries <= 1 FROM shards WHERE id = %s", shard) == [(0, True)]
    time.sleep(0.5)
    wait_for(
        lambda: not list(Path(cluster.runtime(f"worker{number}")).glob("shard-*.json")),
        what="the note of the killed ones to go",
    )
