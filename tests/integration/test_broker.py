"""What Redis does to the cluster, and what the cluster leaves in Redis."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cluster import Cluster
from documents import write
from services import PATIENCE, wait_for

from semantik.check import redis_part
from semantik.consumer import LONGEST_PAUSE, REFUSED_PAUSE
from semantik.housekeeping import SHARD_TASK, Sweeper, expired, held

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
WORKERS = ("worker0", "worker1")


def keys(cluster: Cluster) -> set[str]:
    return {key.decode() for key in cluster.services.redis().keys("*")}


def marks(cluster: Cluster, *names: str) -> dict[str, int]:
    return {name: cluster.log(name).stat().st_size for name in names}


def since(cluster: Cluster, marked: dict[str, int]) -> str:
    text = ""
    for name, start in marked.items():
        with cluster.log(name).open("rb") as log:
            log.seek(start)
            text += log.read().decode()
    return text


def alive(cluster: Cluster) -> bool:
    return all(process.poll() is None for process in cluster.processes.values())


def test_after_kills_redis_holds_what_it_held_before(cluster: Cluster, tmp_path: Path) -> None:
    server = cluster.services.redis()
    wait_for(lambda: not server.exists("semantik:unacked"), what="what the tests before left to go")
    before = keys(cluster)
    write(tmp_path / "docs", 120)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "kills")
        _, slot = cluster.wait_running(job)
        number = int(slot[-1])
        os.kill(cluster.child(f"worker{number}"), signal.SIGKILL)
        other = f"here:{1 - number}"
        cluster.wait_running(job, slot=other)
        # The parent alone, without a word to anyone: its child follows it.
        os.kill(cluster.processes[f"worker{1 - number}"].pid, signal.SIGKILL)
        cluster.processes.pop(f"worker{1 - number}").wait(30)
        assert server.exists("semantik:unacked"), "what the killed one held"
    assert cluster.finish(job, seconds=120).state == "completed"
    cluster.start_worker(1 - number)
    assert cluster.outcomes(job) == {"embedded": 120}
    # The job's result is there to be asked for, for a day.
    result = f"semantik:celery-task-meta-{job.id}"
    wait_for(lambda: keys(cluster) == before | {result}, what=f"{keys(cluster) ^ before} to go")
    assert 0 < server.ttl(result) <= 86_400
    cluster.wait_live(least=2)


def test_a_full_redis_ends_nothing_and_is_told_once(cluster: Cluster, tmp_path: Path) -> None:
    server = cluster.services.redis()
    write(tmp_path / "docs", 120)
    names = (*WORKERS, "scheduler")
    marked = marks(cluster, *names)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "full-redis")
        cluster.wait_running(job)
        server.config_set("maxmemory", "1mb")
        try:
            # Each worker's next message is refused, and the scheduler's next one.
            for name in names:
                wait_for(
                    lambda name=name: "redis full" in since(cluster, {name: marked[name]}),  # type: ignore[misc]
                    what=f"{name} to meet it",
                )
            part = redis_part(cluster.settings())
            time.sleep(REFUSED_PAUSE + 2)  # the time of another attempt
            assert alive(cluster)
        finally:
            server.config_set("maxmemory", "0")
    assert not part.ok and "raise redis_memory_max" in part.detail
    assert cluster.finish(job, seconds=120).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 120}
    assert alive(cluster)
    for name in names:
        said = since(cluster, {name: marked[name]})
        assert said.count("redis full") == 1 == said.count("redis back"), name
    assert cluster.rows("SELECT sum(crashes), sum(expiries) FROM shards WHERE job_id = %s", job.id) == [
        (0, 0)
    ]


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_no_worker_idles_after_redis_was_away_for_long(
    half_cluster: Cluster, how: str, tmp_path: Path
) -> None:
    cluster, services = half_cluster, half_cluster.services
    cluster.wait_live(least=2)
    marked = marks(cluster, *WORKERS)
    if how == "killed":
        services.stop("redis", signal.SIGKILL)
        time.sleep(25)  # Celery's own pauses would have grown to ten seconds
        services.start_redis()
    else:
        services.signal("redis", signal.SIGSTOP)
        time.sleep(25)  # past the time-outs of a socket
        services.signal("redis", signal.SIGCONT)
    write(tmp_path / "docs", 80)
    job = cluster.submit(tmp_path / "docs", f"away-{how}")
    with cluster.slowed():
        wait_for(
            lambda: len(cluster.rows(
                "SELECT DISTINCT slot FROM shards WHERE job_id = %s AND attempt > 0", job.id
            )) == 2,
            what="both slots to be at work",
        )  # fmt: skip
    assert cluster.finish(job).state == "completed"
    for name in WORKERS:
        said = since(cluster, {name: marked[name]})
        assert said.count("redis away") == said.count("redis back") <= 1, "once, and in one line"
        assert "Traceback" not in said
    assert alive(cluster)


def test_the_scheduler_lives_on_beside_a_frozen_redis(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster, services = half_cluster, half_cluster.services
    write(tmp_path / "docs", 120)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "frozen-redis")
        cluster.wait_running(job)
        services.signal("redis", signal.SIGSTOP)
        told = cluster.told("scheduler")
        fed = len(told)
        try:
            time.sleep(25)  # progress is written meanwhile, and what was handed out is done
            assert "WATCHDOG=1" in told[fed:], "systemd would end it after a minute without"
        finally:
            services.signal("redis", signal.SIGCONT)
    assert cluster.finish(job, seconds=120).state == "completed"
    assert alive(cluster)


def test_the_longest_pause_is_within_what_is_promised(idle_cluster: Cluster) -> None:
    from semantik.celery_app import CONNECT_SECONDS, SOCKET_SECONDS  # loads the settings of the process

    assert LONGEST_PAUSE + max(CONNECT_SECONDS, SOCKET_SECONDS) + REFUSED_PAUSE <= 30


@pytest.mark.parametrize("answer", ["ack", "requeue"])
def test_a_message_that_redis_does_not_hear_the_answer_to_is_let_go(
    idle_cluster: Cluster, answer: str
) -> None:
    services, app = idle_cluster.services, idle_cluster.app
    options = {"socket_timeout": 1, "health_check_interval": 0}
    with app.connection_for_read(transport_options=options) as connection:
        queue = connection.SimpleQueue(f"answers-{answer}")
        for number in (1, 2):
            queue.put(number)
        channel = queue.channel
        channel.basic_qos(0, 1, False)  # as a worker has it: one message in hand
        message = queue.get(timeout=5 * PATIENCE)
        assert not channel.qos.can_consume()
        services.signal("redis", signal.SIGSTOP)
        try:
            with pytest.raises(connection.connection_errors):
                message.ack() if answer == "ack" else message.requeue()
        finally:
            services.signal("redis", signal.SIGCONT)
        assert channel.qos.can_consume(), "the next may come"
        assert queue.get(timeout=5 * PATIENCE).payload == 2


def test_a_question_that_nobody_took_does_not_stay(idle_cluster: Cluster) -> None:
    """As `semantik check` leaves them in the queue of a slot that is down."""
    server, queue = idle_cluster.services.redis(), "semantik:slot.gone.3"
    idle_cluster.app.send_task("semantik.tasks.test_task", queue="slot.gone.3", expires=60.0)
    (new,) = server.lrange(queue, 0, -1)
    old = json.loads(new)
    old["headers"]["expires"] = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    for _ in range(2):
        server.rpush(queue, json.dumps(old))
    server.lpush("semantik:slot.gone.4", b"of another program")
    with (
        idle_cluster.app.connection_for_write() as broker,
        idle_cluster.connection("scheduler") as connection,
    ):
        assert Sweeper().sweep(connection, broker) == 0, "these slots are not known"
        assert Sweeper().sweep(connection, broker, ["gone:3", "gone:4"]) == 2
    assert server.lrange(queue, 0, -1) == [new], "it may still be taken in time"
    assert server.lrange("semantik:slot.gone.4", 0, -1) == [b"of another program"]
    assert not expired(b"{}") and not expired(b"[1]")
    server.delete(queue, "semantik:slot.gone.4", "semantik:_kombu.binding.slot.gone.3")


def test_redis_flushed_while_workers_wait_in_it(cluster: Cluster, tmp_path: Path) -> None:
    cluster.services.redis().flushall()
    write(tmp_path / "docs", 10)
    assert cluster.finish(cluster.submit(tmp_path / "docs", "flushed-idle")).state == "completed"
    assert alive(cluster)


def test_a_message_that_comes_twice_is_left(cluster: Cluster, tmp_path: Path) -> None:
    server = cluster.services.redis()
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "twice")
        shard, _ = cluster.wait_running(job)
        taken = server.hgetall("semantik:unacked").values()
        (message,) = [body for body in taken if held("", body).subject == str(shard)]
        for _ in range(3):
            _put_back(cluster, message)
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 60}
    assert cluster.rows("SELECT max(attempt), sum(expiries) FROM shards WHERE job_id = %s", job.id) == [
        (1, 0)
    ]
    wait_for(
        lambda: since(cluster, dict.fromkeys(WORKERS, 0)).count(f"left job={job.id} shard={shard}")
        == 3,
        what="the copies to be left",
    )  # fmt: skip


def _put_back(cluster: Cluster, entry: bytes) -> None:
    """Give a taken message to the next worker, as kombu does when its visibility time-out is over."""
    message, _, queue = json.loads(entry)
    cluster.services.redis().rpush(f"semantik:{queue}", json.dumps(message))


def test_a_worker_whose_clock_is_ahead_gives_messages_out_again_and_harms_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    assert FAKETIME.exists(), "apt-get install faketime"
    write(tmp_path / "docs", 80)
    # An hour beyond the visibility time-out: what others have just taken looks abandoned to its kombu.
    ahead = cluster.settings().visibility_seconds + 3600
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "ahead")
        cluster.wait_running(job)
        cluster.start_worker(
            7, LD_PRELOAD=str(FAKETIME), FAKETIME=f"+{ahead}", FAKETIME_DONT_FAKE_MONOTONIC="1"
        )
        marked = marks(cluster, *WORKERS)
        wait_for(
            lambda: f"left job={job.id}" in since(cluster, {**marked, "worker7": 0}),
            what="a message that was given out again",
        )
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 80}
    assert cluster.rows(
        "SELECT max(attempt), sum(crashes), sum(expiries) FROM shards WHERE job_id = %s", job.id
    ) == [
        (1, 0, 0)
    ]  # fmt: skip
    assert cluster.stop("worker7") == 0


def test_entries_of_other_programs_are_told_apart() -> None:
    assert held("t", None).task == ""
    for strange in (b"", b"null", b"[]", b'[{"headers": {}}]', b"\xff"):
        assert held("t", strange).task == "unknown"
    assert held("t", _message(SHARD_TASK, "W1s0XSwge30sIHt9XQ==")).subject == "4"


def _message(task: str, body: str) -> bytes:
    return f'[{{"body": "{body}", "headers": {{"task": "{task}", "expires": null}}}}, "", "embed"]'.encode()
