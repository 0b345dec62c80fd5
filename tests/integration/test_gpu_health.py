"""A cluster whose slot 0 has a GPU that gets into trouble, beside slot 1 without one.

The worker computes on the CPU; what its parent sees of the GPU is what the compiled driver says.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from command import run
from documents import write
from nvml_driver import CARD, WELL, Driver
from services import Services, wait_for

REST = 3.0


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(tmp_path_factory.mktemp("driver") / "nvml.conf")


@pytest.fixture(scope="module")
def gpu(driver: Driver, library: Path) -> dict[str, str]:
    """What the unit of a slot with a GPU has in its environment."""
    return {
        "CUDA_VISIBLE_DEVICES": CARD,
        "LD_LIBRARY_PATH": str(library.parent),
        "SEMANTIK_LAB_NVML": str(driver.path),
        "SEMANTIK_HEALTH_SECONDS": "0.3",
        "SEMANTIK_REST_SECONDS": str(REST),
    }


@pytest.fixture(scope="module")
def sick_cluster(
    services: Services, idle_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, gpu: dict[str, str]
) -> Iterator[Cluster]:
    """A cluster of its own: in the others, any slot may take a shard."""
    services.make_database("sick")
    model = {**idle_cluster.model, "SEMANTIK_KEY_PREFIX": "sick:"}
    made = Cluster(services, tmp_path_factory.mktemp("sick"), model, "sick")
    try:
        made.start_scheduler()
        made.start_planner()
        made.start_worker(0, **gpu)
        made.start_worker(1)
        made.wait_live(least=2)
        yield made
    finally:
        made.close()


@pytest.fixture
def cluster(sick_cluster: Cluster, driver: Driver, gpu: dict[str, str]) -> Cluster:
    """Both slots at work, the GPU well: a condemned one is served by a new service."""
    driver.behind = ""
    driver.say(lost="0", **WELL)
    if state(sick_cluster) == "condemned":
        sick_cluster.stop("worker0")
        sick_cluster.start_worker(0, **gpu)
    if "worker1" not in sick_cluster.processes:
        sick_cluster.start_worker(1)
    sick_cluster.wait_live(least=2)
    return sick_cluster


def state(cluster: Cluster) -> str:
    return str(cluster.rows("SELECT state FROM slots WHERE slot = 'here:0'")[0][0])


def wait_state(cluster: Cluster, *states: str) -> None:
    wait_for(lambda: state(cluster) in states, what=f"slot 0 to be {states}; logs in {cluster.directory}")


def window(cluster: Cluster) -> int:
    """How many shards the scheduler may hand out, of which none is."""
    from semantik.database import query

    with cluster.connection("scheduler") as connection:
        row = connection.execute(query("scheduler.window"), {"per_slot": 2, "live": 6.0}).fetchone()
    assert row is not None
    return int(row[0])


def test_a_condemned_gpu_gives_its_shard_back_and_another_slot_does_it(
    cluster: Cluster, driver: Driver, tmp_path: Path
) -> None:
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "condemned")
        shard, _ = cluster.wait_running(job, slot="here:0")
        driver.event("95")
        wait_for(
            lambda: (
                cluster.rows(
                    "SELECT FROM shards WHERE id = %s AND slot = 'here:0' AND state = 'running'", shard
                )
                == []
            ),
            what="the shard to be given back",
        )
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 60}
    assert cluster.rows("SELECT crashes, expiries, slot FROM shards WHERE id = %s", shard) == [
        (0, 0, "here:1")
    ]
    log = cluster.log("worker0").read_text()
    assert f"given back: the GPU is condemned job={job.id} shard={shard} reason=" in log
    assert "takes no shards" in log
    wait_state(cluster, "condemned")
    assert cluster.rows("SELECT trouble FROM slots WHERE slot = 'here:0'") == [
        ("Xid 95: an uncontained uncorrectable error",)
    ]
    assert window(cluster) == 2, "one slot is live"


def test_a_condemned_gpu_claims_nothing_more_of_what_waits_for_it(
    cluster: Cluster, driver: Driver, tmp_path: Path
) -> None:
    cluster.stop("worker1")
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "alone")
        cluster.wait_running(job, slot="here:0")
        driver.say(ecc_volatile="4")
        wait_state(cluster, "condemned")
        time.sleep(2)
    since = cluster.log("worker0").read_text().rpartition("semantik.health: the GPU is condemned")[2]
    assert f"given back: the GPU is condemned job={job.id}" in since
    assert "claimed" not in since
    cluster.start_worker(1)
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 60}


def test_a_check_reaches_the_slot_of_a_condemned_gpu(cluster: Cluster, driver: Driver) -> None:
    driver.say(ecc_volatile="4")
    wait_state(cluster, "condemned")
    env = {"SEMANTIK_EXPECTED_SLOTS": "here:0,here:1"}
    report = json.loads(run(cluster, "check", "--gpu", "--json", **env).stdout)
    (part,) = (part for part in report["parts"] if part["name"] == "slot here:0")
    assert (part["ok"], part["trouble"]) == (False, "1 uncorrectable ECC error")
    answers = {answer["slot"]: answer for answer in report["gpus"]}
    assert (answers["here:0"]["ok"], answers["here:0"]["trouble"]) == (False, "1 uncorrectable ECC error")
    assert (answers["here:0"]["ecc_errors"], answers["here:0"]["sm_mhz"]) == (4, 2040)
    assert answers["here:1"]["ok"]
    metrics = Path(cluster.runtime("worker0"), "gpu.prom").read_text()
    assert f'semantik_gpu_healthy{{host="here",slot="here:0",uuid="{CARD}"}} 0\n' in metrics


def test_a_resting_gpu_ends_its_shard_and_takes_none_until_it_is_well(
    cluster: Cluster, driver: Driver, tmp_path: Path
) -> None:
    cluster.stop("worker1")
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "rested")
        shard, _ = cluster.wait_running(job, slot="here:0")
        driver.say(reasons="0x40")
        wait_for(
            lambda: cluster.rows("SELECT state FROM shards WHERE id = %s", shard) == [("done",)],
            what="the shard at hand to be finished",
        )
    wait_state(cluster, "resting")
    time.sleep(2)
    assert cluster.rows(
        "SELECT count(*) FROM shards WHERE job_id = %s AND state = 'running'", str(job.id)
    ) == [(0,)]
    assert cluster.get(job).state == "running"
    driver.say(reasons="0x0")
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 60}
    wait_state(cluster, "idle")
    assert cluster.rows("SELECT trouble FROM slots WHERE slot = 'here:0'") == [(None,)]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_condemned_gpu_takes_nothing_after_a_restart_of_redis(
    cluster: Cluster, driver: Driver, tmp_path: Path, when: str
) -> None:
    if when == "before":
        driver.say(lost="1")
        wait_state(cluster, "condemned")
    log = cluster.log("worker0")
    known = log.read_text().count("redis back")
    cluster.services.stop("redis", signal.SIGKILL)
    driver.say(lost="1")
    wait_state(cluster, "condemned")
    time.sleep(2)
    cluster.services.start_redis()
    write(tmp_path / "docs", 20)
    with cluster.slowed():  # so that a message waits while the other slot is at work
        found = [cluster.submit(tmp_path / "docs", f"restarted-{when}-{at}") for at in range(2)]
        wait_for(lambda: log.read_text().count("redis back") > known, what="the worker to be back")
        time.sleep(2)
    for job in found:
        assert cluster.finish(job).state == "completed"
        shards = cluster.rows("SELECT slot, attempt FROM shards WHERE job_id = %s", str(job.id))
        assert shards == [("here:1", 1)]


def test_starting_the_service_again_is_the_word_to_go_on(
    cluster: Cluster, driver: Driver, gpu: dict[str, str]
) -> None:
    driver.say(ecc_volatile="9", remap_pending="1")
    wait_state(cluster, "condemned")
    cluster.stop("worker0")
    cluster.start_worker(0, **gpu)
    wait_state(cluster, "idle")
    time.sleep(1)
    assert state(cluster) == "idle", "what was there at its start is let pass"
    told = cluster.told("worker0")
    assert "READY=1" in told


def test_a_refusal_ends_the_service_before_it_loads_its_model(
    cluster: Cluster, driver: Driver, gpu: dict[str, str]
) -> None:
    cluster.start_worker(7, **gpu, MODEL_MAX_MEMORY_GB="80")
    assert cluster.processes["worker7"].wait(30) == 78
    assert (
        'cannot start reason="MODEL_MAX_MEMORY_GB=80 is more than GPU' in cluster.log("worker7").read_text()
    )
    assert not cluster.rows("SELECT FROM slots WHERE slot = 'here:7'")
    del cluster.processes["worker7"]
