"""What PostgreSQL does to the cluster: away, full or refusing, it makes work wait and blames no one.

The data directory is a small file system of its own, so that its disk can be full.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from cluster import Cluster
from documents import write
from services import Services, tree, wait_for

from conftest import model_settings

#: MiB for the data directory. What initdb makes, with its journal, takes about 60 of them.
DISK = 160


class SmallDisk(Services):
    """Services whose PostgreSQL has little room."""

    @property
    def data(self) -> Path:
        return self.directory / "postgres"

    def prepare(self) -> None:
        self.data.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", self.data], check=True)
        super().prepare()

    def fill(self) -> None:
        """Leave no byte."""
        with (self.data / "ballast").open("wb", buffering=0) as ballast:
            for size in (1 << 20, 4096, 1):
                try:
                    while ballast.write(b"\0" * size):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        (self.data / "ballast").unlink()

    def ended(self) -> bool:
        return self._processes["postgres"].poll() is not None

    def close(self) -> None:
        for name in list(self._processes):
            self.stop(name, signal.SIGKILL)
        unmount(self.data)
        super().close()


def unmount(path: Path) -> None:
    if path.is_mount():
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with one slot, on services of its own."""
    root = tree()
    for left in (root / "srv").glob("small-*/postgres"):
        if not Path(f"/proc/{left.parent.name.partition('-')[2]}").exists():
            unmount(left)
    directory = root / "srv" / f"small-{os.getpid()}"
    directory.mkdir()
    services = SmallDisk(root, directory)
    made = Cluster(services, tmp_path_factory.mktemp("small"), model_settings())
    try:
        services.prepare()
        services.start_postgres()
        services.start_redis()
        services.make_roles()
        services.make_database()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CELERY_BROKER_URL", services.redis_url)
            patch.setenv("SEMANTIK_DATABASE_URL", services.database_url("operator"))
            patch.setenv("CREDENTIALS_DIRECTORY", "/nonexistent")
            made.start_scheduler()
            made.start_planner()
            made.start_worker(0)
            made.wait_live(least=1)
            yield made
    finally:
        made.close()
        services.close()


def blameless(cluster: Cluster, job: object) -> bool:
    """Return whether no shard of the job counts a crash or an expiry."""
    return cluster.rows("SELECT sum(crashes), sum(expiries) FROM shards WHERE job_id = %s", str(job)) == [
        (0, 0)
    ]


def log(cluster: Cluster, name: str = "worker0") -> str:
    return cluster.log(name).read_text()


def test_a_schema_of_another_release_makes_work_wait_and_condemns_no_document(
    small: Cluster, tmp_path: Path
) -> None:
    write(tmp_path / "docs", 4)
    with small.superuser() as connection:
        connection.execute("ALTER TABLE shards RENAME COLUMN skipped TO away")
    try:
        job = small.submit(tmp_path / "docs", "schema")
        wait_for(lambda: log(small).count("given back") >= 2, seconds=60, what="the shard comes back twice")
        assert 'reason="column' in log(small)
    finally:
        with small.superuser() as connection:
            connection.execute("ALTER TABLE shards RENAME COLUMN away TO skipped")
    assert small.finish(job, seconds=120).state == "completed"
    assert small.outcomes(job) == {"embedded": 4}
    assert blameless(small, job.id)


def test_a_full_disk_makes_work_wait_and_condemns_no_document(small: Cluster, tmp_path: Path) -> None:
    services = small.services
    assert isinstance(services, SmallDisk)
    write(tmp_path / "docs", 60)
    with small.slowed():
        job = small.submit(tmp_path / "docs", "disk")
        small.wait_running(job)
        services.fill()
        try:
            wait_for(
                lambda: "No space left" in log(small) or services.ended(),
                seconds=60,
                what="the shard to meet it",
            )
            time.sleep(12)  # longer than the lease and its reaper
        finally:
            services.free()
            if services.ended():  # its journal found no room either: systemd starts it again
                services.stop("postgres")
                services.start_postgres()
    assert small.finish(job, seconds=120).state == "completed"
    assert small.outcomes(job) == {"embedded": 60}
    assert small.rows("SELECT sum(crashes) FROM shards WHERE job_id = %s", job.id) == [(0,)]
    assert "crashed job=" not in log(small) and "shard failed" not in log(small)


def test_a_postmaster_that_is_killed(small: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "docs", 60)
    with small.slowed():
        job = small.submit(tmp_path / "docs", "postmaster")
        small.wait_running(job)
        small.services.stop("postgres", signal.SIGKILL)
        time.sleep(8)  # every lease runs out meanwhile
        small.services.start_postgres()
    assert small.finish(job, seconds=120).state == "completed"
    assert small.outcomes(job) == {"embedded": 60}
    assert blameless(small, job.id), "the database was away, not the worker"


@pytest.mark.parametrize("how", ["terminate", "cancel"])
def test_a_copy_that_fails_in_the_middle(small: Cluster, how: str, tmp_path: Path) -> None:
    write(tmp_path / "docs", 40)
    with small.slowed():
        job = small.submit(tmp_path / "docs", f"copy-{how}")
        shard, _ = small.wait_running(job)
        for _ in range(3):
            ended = wait_for(
                lambda: small.rows(
                    f"SELECT pg_{how}_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = %s AND query LIKE 'COPY shard_rows%%'",
                    f"semantik shard {shard}",
                ),
                what="the session in its COPY",
            )
            assert ended == [(True,)]
            time.sleep(2)
    assert small.finish(job, seconds=120).state == "completed"
    assert small.outcomes(job) == {"embedded": 40}
    assert blameless(small, job.id)
    assert f"commit refused job={job.id}" not in log(small), "its own slot took the shard again"


def test_a_database_without_a_connection_to_spare(small: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "docs", 60)
    url = small.services.database_url("operator")
    with small.slowed():
        job = small.submit(tmp_path / "docs", "connections")
        small.wait_running(job)
        held: list[psycopg.Connection[tuple[object, ...]]] = []
        try:
            with pytest.raises(psycopg.OperationalError, match="connection"):
                while True:
                    held.append(psycopg.connect(url))
            small.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                       "WHERE application_name LIKE 'semantik s%%'")  # fmt: skip
            with pytest.raises(psycopg.OperationalError, match="connection"):
                while True:
                    held.append(psycopg.connect(url))
            time.sleep(8)
        finally:
            for connection in held:
                connection.close()
    assert small.finish(job, seconds=120).state == "completed"
    assert small.outcomes(job) == {"embedded": 60}
    assert small.rows("SELECT sum(crashes) FROM shards WHERE job_id = %s", job.id) == [(0,)]


def test_a_database_that_takes_no_writes(small: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "docs", 60)
    with small.slowed():
        job = small.submit(tmp_path / "docs", "read-only")
        small.wait_running(job)
        _set(small, "ALTER SYSTEM SET default_transaction_read_only = on")
        time.sleep(8)
        _set(small, "SET transaction_read_only = off", "ALTER SYSTEM RESET default_transaction_read_only")
    assert small.finish(job, seconds=120).state == "completed"
    assert small.outcomes(job) == {"embedded": 60}
    assert small.rows("SELECT sum(crashes) FROM shards WHERE job_id = %s", job.id) == [(0,)]


def _set(cluster: Cluster, *statements: str) -> None:
    with cluster.superuser() as connection:
        connection.execute("SET default_transaction_read_only = off")
        for statement in statements:
            connection.execute(statement)
        connection.execute("SELECT pg_reload_conf()")


def test_planning_that_the_database_breaks_off_is_no_mark_against_the_job(
    small: Cluster, tmp_path: Path
) -> None:
    from semantik.leases import Keeper
    from semantik.planner import Planner
    from semantik.pulse import Pulse

    write(tmp_path / "docs", 5)
    settings = small.settings("planner")
    small.stop("planner")
    job = small.submit(tmp_path / "docs", "planned-again", send=False)
    left = [psycopg.errors.DiskFull("could not extend file") for _ in range(settings.plan_limit + 1)]

    class Unlucky(Planner):
        def _plan(self, *arguments: object) -> None:
            if left:
                raise left.pop()
            super()._plan(*arguments)  # type: ignore[arg-type]

    keeper = Keeper(settings, lambda _connection: None, "test")
    planner = Unlucky(settings, "planner@test", keeper, Pulse().child(0), lambda: False)
    planner.plan(str(job.id))
    assert not left
    assert small.rows("SELECT plan_attempts, planned FROM jobs WHERE id = %s", job.id) == [(1, True)]
    small.start_planner()
    assert small.finish(job).state == "completed"
