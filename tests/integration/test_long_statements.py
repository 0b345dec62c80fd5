"""A statement that takes long is no hang: leases are renewed and the watchdog is fed meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from bench import Bench
from cluster import Cluster
from services import wait_for

from semantik import leases
from semantik.database import connect, query
from semantik.engine import Finished
from semantik.leases import Keeper
from semantik.planner import Planner
from semantik.pulse import Pulse
from semantik.runner import Runner
from semantik.shards import ShardLease

#: Seconds; far below what the statements here take.
STALL = 0.5


@contextmanager
def kept(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(leases, "stall_seconds", lambda _settings: STALL)
    keeper.start()
    try:
        yield
    finally:
        keeper.end()
        keeper.join(10)


def hold_up(cluster: Cluster, work: Callable[[], None], lease: str, pulse: Pulse) -> None:
    """Run `work` while nothing may change documents for 3 s; `lease` (SQL) is its lease's seconds left."""
    thread = threading.Thread(target=work, daemon=True)
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = 'idle' AND wait_event_type = 'Lock'"
    with cluster.superuser() as holder, holder.transaction():
        holder.execute("LOCK TABLE documents IN SHARE MODE")
        thread.start()
        wait_for(lambda: cluster.rows(waits), what="the statement waits")
        time.sleep(3)
        ((left,),) = cluster.rows(lease)
        assert left > 3, "a lease of 5 s that is not renewed has less than 2 s left"
        assert not pulse.stalled(STALL)
    thread.join(20)
    assert not thread.is_alive()


def test_planning_keeps_its_lease(
    idle_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.txt").write_text("one")
    job = str(idle_cluster.submit(tmp_path, "long-plan", send=False).id)
    settings, pulse = idle_cluster.settings("planner"), Pulse()
    keeper = Keeper(settings, lambda _connection: None, "test keeper")
    planner = Planner(settings, "planner@here", keeper, pulse.child(0), lambda: False)
    with kept(keeper, monkeypatch):
        lease = f"SELECT extract(epoch FROM lease_until - now()) FROM jobs WHERE id = '{job}'"
        hold_up(idle_cluster, lambda: planner.plan(job), lease, pulse)
    assert idle_cluster.rows("SELECT state, planned FROM jobs WHERE id = %s", job) == [("running", True)]


def test_committing_keeps_its_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, pulse = bench.cluster.settings("worker"), Pulse()
    keeper = Keeper(settings, lambda _connection: None, "test keeper")
    unused = cast(Any, None)
    runner = Runner(settings, unused, unused, keeper, pulse, pulse.child(0))
    with connect(settings) as connection, kept(keeper, monkeypatch):
        held = bench.claim(connection, "here:7", settings.lease_seconds)
        assert held is not None
        lease = ShardLease(held, settings.lease_seconds)
        sources = connection.execute(query("shards.sources"), {"shard": bench.shard}).fetchall()
        finished = [Finished(source[0], "failed", "unreadable", None, None, 0, 0, 0) for source in sources]
        connection.execute(query("shards.make_rows"))
        runner.child.work()
        keeper.hold(lease)
        hold_up(
            bench.cluster,
            lambda: runner._commit(connection, lease, finished, {}),
            f"SELECT extract(epoch FROM lease_until - now()) FROM shards WHERE id = {bench.shard}",
            pulse,
        )
    assert bench.row("state") == ("done",)
