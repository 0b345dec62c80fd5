"""`semantik check` against a running cluster, whole and with parts missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from cluster import Cluster
from command import ask, run
from services import free_port, wait_for

from semantik import check

SLOTS = "here:0,here:1"


@pytest.fixture(scope="module")
def env(running_cluster: Cluster) -> Iterator[dict[str, str]]:
    """The cluster with Flower, and what the inventory would say of it."""
    expected = {"SEMANTIK_EXPECTED_SLOTS": SLOTS, "SEMANTIK_FLOWER_PORT": str(free_port())}
    running_cluster.start(
        "flower",
        [sys.executable, "-m", "semantik.flower"],
        running_cluster.environment("operator", FLOWER_BASIC_AUTH="ops:c0rrect-horse-battery", **expected),
    )
    settings = running_cluster.settings(**expected)
    wait_for(lambda: check.flower_part(settings).ok, what="Flower")
    yield expected
    running_cluster.stop("flower")


@pytest.fixture
def whole(cluster: Cluster, env: dict[str, str]) -> Cluster:
    """The cluster when every part answers: a worker's slot is live a moment before its Celery node is."""
    settings = cluster.settings(**env)
    wait_for(lambda: all(part.ok for part in check.check(settings)), seconds=60, what="every part to be ok")
    return cluster


def test_a_whole_cluster_is_ok_and_each_slot_answers(whole: Cluster, env: dict[str, str]) -> None:
    result = run(whole, "check", "--gpu", **env)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout
    assert [line[:19].rstrip() for line in lines] == [
        "ok   redis",
        "ok   postgresql",
        "ok   planner",
        "ok   scheduler",
        "ok   query here",
        "ok   slot here:0",
        "ok   slot here:1",
        "ok   flower",
        *sorted(line[:19].rstrip() for line in lines[8:]),
    ]
    assert {line[:19].rstrip() for line in lines[8:]} == {"ok   gpu here:0", "ok   gpu here:1"}


def test_what_is_missing_is_bad_and_named(whole: Cluster, env: dict[str, str]) -> None:
    whole.stop("worker1")
    try:
        report = run(whole, "check", "--gpu", **{**env, "SEMANTIK_EXPECTED_SLOTS": f"{SLOTS},there:0"})
    finally:
        whole.start_worker(1)
    assert report.returncode == 1
    bad = [line for line in report.stdout.splitlines() if line.startswith("BAD")]
    assert [line[5:19].rstrip() for line in bad] == [
        "query there",
        "slot here:1",
        "slot there:0",
        "gpu here:1",
        "gpu there:0",
    ]
    assert "systemctl status semantik-worker@1" in bad[1]
    assert "never seen" in bad[2]


def test_json_has_every_part_and_gpu(whole: Cluster, env: dict[str, str]) -> None:
    report = ask(whole, "check", "--gpu", **env)
    assert report["ok"] is True
    assert [answer["slot"] for answer in report["gpus"]] == ["here:0", "here:1"]
    assert all(answer["device"] == "cpu" and answer["ok"] for answer in report["gpus"])


def test_a_schema_older_than_the_release_is_bad(cluster: Cluster, env: dict[str, str]) -> None:
    with cluster.services.superuser() as connection:
        rows = connection.execute("SELECT name, checksum FROM migrations").fetchall()
        connection.execute("DELETE FROM migrations")
        try:
            part = check.recorded(cluster.settings(**env)).part
        finally:
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO migrations (name, checksum) VALUES (%s, %s)", rows)
    assert not part.ok
    missing = "0001_initial, 0002_states, 0003_counts, 0004_health, 0005_processes"
    assert part.detail == f"the schema lacks {missing}: run site.yml, which migrates it"


def test_a_redis_that_would_forget_is_bad(cluster: Cluster) -> None:
    redis = cluster.services.redis()
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        part = check.redis_part(cluster.settings())
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert not part.ok
    assert "would drop messages when full" in part.detail
