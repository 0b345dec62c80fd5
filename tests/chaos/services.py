"""Faults of what all hosts need: Redis, PostgreSQL, scheduler, planner; and messages and documents."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from chaos.cluster import DOCUMENTS, PATIENCE, PREFIX, Cluster, kill, wait
from chaos.disk import BALLAST, fill
from chaos.faults import Note, fault, heal_workers
from chaos.kinds import ChaosError
from chaos.schedule import Fault

REDIS = "redis-server.service"
SCHEDULER = "semantik-scheduler.service"
PLANNER = "semantik-planner.service"
_JUNK = "chaos:junk:"
_ROOM = 2 << 20


def postgresql(cluster: Cluster) -> str:
    """Return the unit of the database server."""
    found = cluster.shell(
        cluster.head, "systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1"
    )
    return found.split()[0] if found.split() else "postgresql@17-main.service"


# --- Redis ---


@fault("redis_kill")
def redis_kill(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    pids = kill(cluster.processes(cluster.head, REDIS))
    yield {"pid": pids}
    cluster.await_active(cluster.head, REDIS, pids)
    wait(cluster.redis_answers, PATIENCE)


@fault("redis_restart")
def redis_restart(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    cluster.shell(cluster.head, f"systemctl restart {REDIS}")
    yield {}
    wait(cluster.redis_answers, PATIENCE)


@fault("redis_flush")
def redis_flush(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    with cluster.redis() as client:
        keys = client.dbsize()
        client.flushall()
    yield {"keys": keys}


@fault("redis_full")
def redis_full(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    with cluster.redis() as client:
        before = int(client.config_get("maxmemory")["maxmemory"])  # type: ignore[index,arg-type]
    written = 0
    try:
        with cluster.redis() as client:
            client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + _ROOM)
            with suppress(redis.exceptions.OutOfMemoryError):
                for written in range(1_000):
                    client.set(f"{_JUNK}{written}", "x" * 16_384)
            # What is left is less than a message needs.
            with suppress(redis.exceptions.OutOfMemoryError):
                for small in range(1_000):
                    client.set(f"{_JUNK}small:{small}", "x" * 64)
        yield {"junk": written}
    finally:
        _empty_redis(cluster, before)


def _empty_redis(cluster: Cluster, maxmemory: int) -> None:
    wait(cluster.redis_answers, PATIENCE)
    with cluster.redis() as client:
        client.config_set("maxmemory", maxmemory)
        for key in client.scan_iter(f"{_JUNK}*", count=1_000):
            client.unlink(key)


# --- PostgreSQL ---


@fault("postgresql_kill")
def postgresql_kill(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    unit = postgresql(cluster)
    pids = cluster.processes(cluster.head, unit)
    yield {"pid": kill(pids[:1])}
    cluster.await_active(cluster.head, unit, pids[:1])
    wait(cluster.database_answers, PATIENCE, 0.25)


@fault("backend_kill")
def backend_kill(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    pids = [pid for pid in cluster.processes(cluster.head, postgresql(cluster)) if _serves_workers(pid)]
    yield {"pid": kill([pids[planned.choice % len(pids)]] if pids else [])}
    time.sleep(0.5)
    wait(cluster.database_answers, PATIENCE, 0.25)


def _serves_workers(pid: int) -> bool:
    try:
        return b"semantik_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@fault("postgresql_restart")
def postgresql_restart(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    cluster.shell(cluster.head, f"systemctl restart {postgresql(cluster)}")
    yield {}
    wait(cluster.database_answers, PATIENCE, 0.25)


@fault("disk_full")
def disk_full(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    try:
        yield {"left": fill(cluster)}
    finally:
        cluster.shell(cluster.head, f"rm -f {BALLAST}")
        wait(cluster.database_answers, PATIENCE, 0.25)


# --- the control services ---


@fault("scheduler_kill")
def scheduler_kill(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    pids = kill(cluster.processes(cluster.head, SCHEDULER))
    yield {"pid": pids}
    cluster.await_active(cluster.head, SCHEDULER, pids)


@fault("planner_kill")
def planner_kill(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    pids = cluster.processes(cluster.head, PLANNER)
    if len(pids) < 2:
        raise ChaosError("the planner has no child process")
    # Parent or child, by turns of the seed.
    victim = pids[:1] if planned.choice % 2 else pids[1:]
    # Planning a few documents is over before the command that handed them in: it is watched for meanwhile.
    with ThreadPoolExecutor(1) as pool, cluster.database() as connection:
        handed_in = pool.submit(_submit, cluster, "side", planned)

        def plans() -> tuple[bool, bool]:
            row = connection.execute(
                "SELECT j.lease_until IS NOT NULL, j.planned FROM jobs j "
                "JOIN collections c ON c.id = j.collection_id WHERE c.name = %s",
                [f"side-{planned.number}"],
            ).fetchone()
            return row or (False, False)

        seen = wait(lambda: any(plans()), 60, 0.002)
        killed = kill(victim) if seen else []
        mid = not plans()[1]
        job = handed_in.result()
    if not killed:
        raise ChaosError("the planner did not begin to plan within 60 s")
    yield {"job": job, "pid": killed, "parent": victim == pids[:1], "mid": mid}
    cluster.await_active(cluster.head, PLANNER, killed)


def _submit(cluster: Cluster, folder: str, planned: Fault) -> str:
    """Hand in a folder as a job that goes before all others, and return the job's id."""
    uri, collection = f"{DOCUMENTS}/chaos/{folder}", f"{folder}-{planned.number}"
    wait(cluster.database_answers, PATIENCE)
    said = cluster.semantik("submit", uri, "--collection", collection, "--priority", "9")
    return str(said["job"]["id"])


# --- messages and documents ---


@fault("duplicate")
def duplicate(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    queue = f"{PREFIX}embed"
    with cluster.redis() as client:
        waiting: Any = client.lrange(queue, 0, -1)
        held: Any = client.hvals(f"{PREFIX}unacked")
        at_work = [json.loads(entry) for entry in held]
        messages = [*waiting, *(json.dumps(entry[0]) for entry in at_work if entry[2] == "embed")]
        chosen = messages[planned.choice % len(messages)] if messages else None
        if chosen is not None:
            client.lpush(queue, chosen)
    yield {"shard": _shard(chosen) if chosen else None, "waiting": len(waiting), "at_work": len(at_work)}


def _shard(message: str) -> Any:
    body = json.loads(message)["body"]
    return json.loads(base64.b64decode(body))[0][0]


@fault("poison")
def poison(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    yield {"job": _submit(cluster, "poison", planned)}


def heal(cluster: Cluster) -> None:
    """Make a lab whole after a run that was cut off: nothing is left that a fault has done."""
    cluster.shell(cluster.head, f"rm -f {BALLAST}")
    units = f"{REDIS} {postgresql(cluster)} {SCHEDULER} {PLANNER}"
    cluster.shell(cluster.head, f"systemctl start {units}", seconds=PATIENCE)
    configured = cluster.shell(cluster.head, "grep '^maxmemory ' /etc/redis/redis.conf").split()[1]
    _empty_redis(cluster, int(configured))
    wait(cluster.database_answers, PATIENCE)
    heal_workers(cluster)
