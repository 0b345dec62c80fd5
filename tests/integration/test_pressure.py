"""However many files there are, the planner and its session of the database hold few of them at a time."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from documents import write
from watch import Watch

from semantik import sources
from semantik.exceptions import SemantikError
from semantik.leases import Keeper
from semantik.planner import Planner
from semantik.pulse import Pulse
from semantik.sources import Listed

#: Plans a job in a process of its own and says what that took at most, by the kernel's count.
PLAN = """
import json, sys
from pathlib import Path
from semantik.leases import Keeper
from semantik.planner import Planner
from semantik.pulse import Pulse
from semantik.settings import load
settings, pulse = load(), Pulse()
keeper = Keeper(settings, lambda connection: None, "test keeper")
keeper.start()
Planner(settings, "planner@here", keeper, pulse.child(0), lambda: False).plan(sys.argv[1])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"peak": int(status["VmHWM"].split()[0])}))
"""


def plan(cluster: Cluster, folder: Path, collection: str, **more: str) -> tuple[str, int]:
    """Plan a job of `folder` in a process of its own; return its id and the process's peak in kB."""
    job = str(cluster.submit(folder, collection, send=False).id)
    done = subprocess.run(
        [sys.executable, "-c", PLAN, job], env=cluster.environment("planner", **more),
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return job, int(json.loads(done.stdout)["peak"])


def many(folder: Path, count: int) -> Path:
    for number in range(count):
        if number % 1_000 == 0:
            (folder / f"{number // 1_000:03}").mkdir(parents=True)
        (folder / f"{number // 1_000:03}" / f"document-{number:06}.txt").write_text("a document")
    return folder


class Largest(Watch):
    """Watches the memory that is one database session's own while a job is planned."""

    def __init__(self, cluster: Cluster) -> None:
        self.bytes = 0
        super().__init__(cluster)

    def _watch(self) -> None:
        sessions = (
            "SELECT pid FROM pg_stat_activity WHERE datname = %s "
            "AND application_name LIKE 'semantik plan ____%%' AND application_name NOT LIKE '%%keeper'"
        )
        with self._cluster.superuser() as connection:
            while not self._ended.wait(0.02):
                for (pid,) in connection.execute(sessions, (self._cluster.database,)).fetchall():
                    self.bytes = max(self.bytes, own_bytes(pid))


def own_bytes(process: int) -> int:
    """Return the memory that a process shares with no other, bytes; 0 when it is gone."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon")), 0)


def test_planning_takes_the_same_memory_for_twenty_times_the_files(
    idle_cluster: Cluster, tmp_path: Path
) -> None:
    peaks, own = [], []
    for count in (2_000, 40_000):
        folder = many(tmp_path / str(count), count)
        with Largest(idle_cluster) as largest:
            job, peak = plan(idle_cluster, folder, f"memory-{count}")
        ((state, planned),) = idle_cluster.rows(
            "SELECT j.state, count(*) FROM jobs j JOIN job_documents d ON d.job_id = j.id "
            "WHERE j.id = %s GROUP BY j.id",
            job,
        )
        assert (state, planned) == ("running", count)
        peaks.append(peak)
        own.append(largest.bytes)
    assert peaks[1] < 1.1 * peaks[0], f"kB at 2,000 and at 40,000 files: {peaks}"
    assert own[0] > 0
    # What 38,000 more documents are in tables and sorts goes to temporary files: their names alone are more.
    assert own[1] - own[0] < 40 << 20, f"bytes of the database session at 2,000 and at 40,000 files: {own}"


def test_sorts_and_tables_of_planning_go_to_files(idle_cluster: Cluster, tmp_path: Path) -> None:
    """With the least work_mem there is, all of a listing that does not fit is written out."""
    folder = many(tmp_path / "documents", 20_000)
    written = "SELECT temp_bytes FROM pg_stat_database WHERE datname = 'idle'"
    ((before,),) = idle_cluster.rows(written)
    with idle_cluster.superuser() as connection:
        connection.execute("ALTER ROLE semantik_planner SET work_mem = '64kB'")
    try:
        with Largest(idle_cluster) as largest:
            plan(idle_cluster, folder, "spill")
    finally:
        with idle_cluster.superuser() as connection:
            connection.execute("ALTER ROLE semantik_planner RESET work_mem")
    ((after,),) = idle_cluster.rows(written)
    assert after - before > 1 << 20
    assert 0 < largest.bytes < 30 << 20


def test_a_listing_that_breaks_off_leaves_nothing(
    idle_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(uri: str) -> Iterator[Listed]:
        for number in range(5_000):
            yield Listed(f"{uri}/{number}.txt", 1, "1")
        raise SemantikError(f"listing {uri} broke off: Stale file handle")

    monkeypatch.setattr(sources, "list_source", broken)
    job = str(idle_cluster.submit(tmp_path, "broken", send=False).id)
    settings, pulse = idle_cluster.settings("planner"), Pulse()
    keeper = Keeper(settings, lambda _connection: None, "test keeper")
    Planner(settings, "planner@here", keeper, pulse.child(0), lambda: False).plan(job)
    ((state, planned, error),) = idle_cluster.rows(
        "SELECT state, planned, error FROM jobs WHERE id = %s", job
    )
    assert (state, planned, error) == (
        "failed", False, f"listing {tmp_path} broke off: Stale file handle",
    )  # fmt: skip
    left = [
        idle_cluster.rows(f"SELECT count(*) FROM {rows}", job)
        for rows in (
            "shards WHERE job_id = %s",
            "job_documents WHERE job_id = %s",
            "documents d JOIN jobs j USING (collection_id) WHERE j.id = %s",
            "pg_stat_activity WHERE application_name = 'semantik plan ' || left(%s, 8)",
        )
    ]
    assert left == 4 * [[(0,)]]


def test_what_is_no_file_fails_with_what_it_is(idle_cluster: Cluster, tmp_path: Path) -> None:
    root = tmp_path / "documents"
    write(root, 2)
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to(".")
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.open(root, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
        job, _ = plan(idle_cluster, root, "no-file")
    found = idle_cluster.rows(
        "SELECT regexp_replace(uri, '.*/', ''), outcome, error FROM job_documents WHERE job_id = %s "
        "ORDER BY uri",
        job,
    )
    assert found == [
        ("dangling", "failed", "is a link to no file"),
        ("document-0000.txt", None, None),
        ("document-0001.txt", None, None),
        ("fifo", "failed", "is a FIFO"),
        ("null", "failed", "is a device"),
        ("socket", "failed", "is a socket"),
    ]
