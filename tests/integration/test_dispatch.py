"""However many shards wait, Redis holds two for each live slot: the window of the scheduler."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench
from cluster import Cluster
from documents import write
from services import Services, wait_for
from watch import Watch

from semantik import jobs
from semantik.database import connect, query
from semantik.pulse import Pulse
from semantik.slots import Slot

#: Of the tests' cluster: two slots, two shards for each.
WINDOW = 4


def test_a_turn_hands_out_no_more_than_the_window(bench: Bench) -> None:
    """Also without statistics, with which the database chose a plan that chose anew for every row."""
    with bench.cluster.superuser() as connection:
        connection.execute(
            "INSERT INTO shards (job_id, number, documents, bytes) "
            "SELECT %s, n, 1, 1 FROM generate_series(2, 400) n",
            (bench.job,),
        )
        for statement in ("SELECT", "ANALYZE shards"):
            connection.execute(statement)
            with connect(bench.settings) as scheduler:
                found = scheduler.execute(query("scheduler.hand_out"), {"window": 4}).fetchall()
                scheduler.rollback()
            assert len(found) == 4


def test_the_window_has_room_for_every_process_of_a_slot(bench: Bench) -> None:
    def window(processes: int) -> int:
        settings = bench.cluster.settings(
            "worker", SEMANTIK_SLOT="many:0", SEMANTIK_CONCURRENCY=str(processes)
        )
        with bench.worker() as worker:
            Slot(settings, Pulse(), ready=True).beat(worker)
        ((room,),) = bench.cluster.rows(query("scheduler.window") % {"per_slot": 2, "live": 30})
        return int(room)

    try:
        # So many that what other tests have left at work leaves room.
        assert window(1003) - window(1000) == 6
    finally:
        with bench.cluster.superuser() as connection:
            connection.execute("DELETE FROM slots WHERE slot = 'many:0'")


class Redis(Watch):
    """Watches what is in Redis, and what the database says is in flight, while jobs run."""

    def __init__(self, cluster: Cluster) -> None:
        self.queue = self.keys = self.in_flight = 0
        super().__init__(cluster)

    def _watch(self) -> None:
        redis, prefix = self._cluster.services.redis(), self._cluster.settings().key_prefix
        flying = "SELECT count(*) FROM shards WHERE state IN ('queued', 'running')"
        with self._cluster.superuser() as connection:
            while not self._ended.wait(0.05):
                row = connection.execute(flying).fetchone()
                self.in_flight = max(self.in_flight, row[0] if row else 0)
                self.queue = max(self.queue, int(redis.llen(f"{prefix}embed")))  # type: ignore[arg-type]
                self.keys = max(self.keys, int(redis.dbsize()))  # type: ignore[arg-type]


def sent_again(cluster: Cluster) -> int:
    """Return how many messages schedulers have sent again.

    A shard whose message a worker has taken and not yet claimed looks as one whose message is lost: its
    second message is refused when its turn comes, and until then is one more in the queue.
    """
    return sum(path.read_text().count("sent again") for path in cluster.directory.glob("scheduler*.log"))


def submit_many(cluster: Cluster, folder: Path, *names: str) -> list[str]:
    """Submit a job of 20 shards for each name; return their ids when all are planned."""
    write(folder, 400, words=40)
    made = [str(cluster.submit(folder, name).id) for name in names]
    wait_for(
        lambda: (
            cluster.rows("SELECT count(*) FROM jobs WHERE planned AND id::text = ANY(%s)", made)
            == [(len(made),)]
        ),
        what="planning",
    )
    for job in made:
        assert cluster.rows("SELECT count(*) FROM shards WHERE job_id = %s", job)[0][0] >= 20
    return made


def cancel(cluster: Cluster, found: list[str]) -> None:
    for job in found:
        with cluster.connection() as connection:
            jobs.cancel(connection, job)
    reported = "SELECT count(*) FROM jobs WHERE reported_at IS NOT NULL AND id::text = ANY(%s)"
    wait_for(lambda: cluster.rows(reported, found) == [(len(found),)], what="the ends are reported")
    # The next test must not count them.
    redis, prefix = cluster.services.redis(), cluster.settings().key_prefix
    wait_for(lambda: redis.llen(f"{prefix}embed") == 0, what="their messages are gone")


@pytest.fixture
def little_memory(services: Services) -> Iterator[None]:
    """Redis may take 2 MB more than it has now; nothing is refused and nothing is evicted meanwhile."""
    redis = services.redis()
    assert redis.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"  # type: ignore[index]
    redis.config_resetstat()
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] + (2 << 20))  # type: ignore[index]
    try:
        yield
        assert "errorstat_OOM" not in redis.info("errorstats")  # type: ignore[operator]
        assert redis.info("stats")["evicted_keys"] == 0  # type: ignore[index]
    finally:
        redis.config_set("maxmemory", 0)


@pytest.mark.usefixtures("little_memory")
def test_redis_holds_two_shards_for_each_slot_whatever_waits(cluster: Cluster, tmp_path: Path) -> None:
    keys = int(cluster.services.redis().dbsize())  # type: ignore[arg-type]
    before = sent_again(cluster)
    with cluster.slowed(), Redis(cluster) as one:
        found = submit_many(cluster, tmp_path / "first", "pressure-one")
        time.sleep(5)
    with cluster.slowed(), Redis(cluster) as two:
        found += submit_many(cluster, tmp_path / "second", "pressure-two")
        time.sleep(5)
    for seen in (one, two):
        assert 2 < seen.in_flight <= WINDOW
        assert seen.queue <= WINDOW + sent_again(cluster) - before
        # A list, its unacknowledged messages, each job's state, what a worker answers: never one for a shard.
        assert seen.keys <= keys + 10
    assert two.keys <= one.keys + 1, "the second job's state, and nothing for its shards"
    cancel(cluster, found)


def test_a_second_scheduler_and_the_death_of_the_first_hand_out_no_more(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.start_scheduler("scheduler-2")
    before = sent_again(cluster)
    try:
        with cluster.slowed(), Redis(cluster) as seen:
            found = submit_many(cluster, tmp_path / "documents", "pressure-schedulers")
            cluster.stop("scheduler", signal.SIGKILL)
            wait_for(
                lambda: "working" in cluster.log("scheduler-2").read_text().split("waiting")[-1],
                what="its turn",
            )
            done = "SELECT count(*) FROM shards WHERE state = 'done' AND job_id::text = ANY(%s)"
            ((before,),) = cluster.rows(done, found)
            wait_for(
                lambda: cluster.rows(done, found)[0][0] >= before + 4, seconds=60, what="four more shards"
            )
        assert 2 < seen.in_flight <= WINDOW and seen.queue <= WINDOW + sent_again(cluster) - before
        cancel(cluster, found)
    finally:
        cluster.stop("scheduler-2")
        cluster.start_scheduler()


def test_a_slot_that_died_is_handed_nothing(cluster: Cluster, tmp_path: Path) -> None:
    before = sent_again(cluster)
    try:
        with cluster.slowed():
            found = submit_many(cluster, tmp_path / "documents", "pressure-slots")
            cluster.stop("worker1", signal.SIGKILL)
            flying = "SELECT count(*) FROM shards WHERE state IN ('queued', 'running')"
            live = (
                "SELECT count(*) FROM slots WHERE state IN ('idle', 'busy') "
                "AND last_seen > now() - interval '6 s'"
            )
            wait_for(lambda: cluster.rows(live) == [(1,)], what="one live slot")
            wait_for(
                lambda: cluster.rows(flying)[0][0] <= 2, seconds=60, what="what was sent for two is done"
            )
            with Redis(cluster) as seen:
                time.sleep(5)
        assert 0 < seen.in_flight <= 2 and seen.queue <= 2 + sent_again(cluster) - before
        cancel(cluster, found)
    finally:
        cluster.start_worker(1)


def test_a_paused_job_takes_no_room_from_another(cluster: Cluster, tmp_path: Path) -> None:
    flying = "SELECT count(*) FROM shards WHERE state IN ('queued', 'running') AND job_id = %s"
    with cluster.slowed(), Redis(cluster) as seen:
        found = submit_many(cluster, tmp_path / "first", "pressure-paused")
        wait_for(lambda: cluster.rows(flying, found[0])[0][0] == WINDOW, what="the window is full")
        with cluster.connection() as connection:
            jobs.pause(connection, found[0])
        found += submit_many(cluster, tmp_path / "second", "pressure-beside")
        wait_for(
            lambda: cluster.rows(flying, found[1])[0][0] == WINDOW, what="the other job has all the room"
        )
        assert cluster.rows(flying, found[0]) == [(0,)]
    assert seen.in_flight <= WINDOW
    # Messages of shards that went back are dropped by who gets them; until then they are beside the others.
    assert seen.queue <= 2 * WINDOW
    cancel(cluster, found)
