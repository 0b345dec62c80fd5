"""A GPU that falls ill, by its driver's word, takes no shard; the others finish, and people are told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
from clusters import Cluster, Operator, rows, wait_for
from test_jobs import LOG_DAYS, SUBJECTS, busy
from testinfra.host import Host

Put = Callable[..., str]
#: What the stand-in of NVIDIA's management library answers from.
CONDITIONS = "/etc/semantik-lab/nvml.conf"
#: Sets values in the section of one GPU, and replaces the file at once: the library reads it at each call.
SAY = """
import json, os, re, sys
path, uuid, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
head, name, rest = open(path).read().partition(f"gpu {uuid}\\n")
assert name, uuid
section, mark, others = rest.partition("gpu ")
for key, value in values.items():
    section, changed = re.subn(rf"(?m)^  {key}\\b.*$", f"  {key} {value}", section)
    section += "" if changed else f"  {key} {value}\\n"
open(path + ".new", "w").write(head + name + section + mark + others)
os.replace(path + ".new", path)
"""
UNIT = "semantik-worker@0.service"
DROPIN = f"/run/systemd/system/{UNIT}.d/90-test.conf"
UNITS = (UNIT, "semantik-gpu@0.service", "semantik-scheduler.service")


class Card:
    """The GPU of slot 0 of a host."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.slot = f"{name}:0"
        self.uuid = host.check_output("sed -n 's/^CUDA_VISIBLE_DEVICES=//p' /etc/semantik/gpu-0.env")

    def say(self, **values: str | int) -> None:
        """Let the driver say other values of it."""
        self.host.check_output("python3 -c %s %s %s %s", SAY, CONDITIONS, self.uuid, json.dumps(values))

    def restart(self, *, wait: bool = True) -> None:
        """Start the worker anew."""
        self.host.run("systemctl reset-failed %s", UNIT)
        self.host.run(f"systemctl restart {'' if wait else '--no-block'} {UNIT}")

    def unit(self, name: str) -> str:
        """Return a property of the worker's unit."""
        return str(self.host.check_output(f"systemctl show --property {name} --value {UNIT}"))

    def metric(self, name: str) -> float:
        """Return what Prometheus reads of it."""
        text = self.host.check_output("cat /run/semantik/worker-0/gpu.prom")
        found = re.search(rf"^semantik_gpu_{name}\{{[^}}]*{self.uuid}[^}}]*\}} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])


@pytest.fixture
def card(cluster: Cluster, operator: Operator) -> Iterator[Card]:
    name = cluster.names("workers")[0]
    host = cluster.host(name)
    card = Card(host, name)
    host.check_output(f"cp {CONDITIONS} {CONDITIONS}.before")
    yield card
    host.check_output(f"mv {CONDITIONS}.before {CONDITIONS}")
    host.run(f"rm -rf $(dirname {DROPIN}); systemctl daemon-reload")
    card.restart()
    wait_for(lambda: operator.attempt("check").rc == 0, 60, "the cluster to be well again")


def said(operator: Operator, card: Card) -> str:
    """Return what `semantik check` says of the card's slot."""
    found = re.search(rf"^.*slot {card.slot}\b.*$", operator.attempt("check").stdout, re.MULTILINE)
    assert found
    return found[0]


@pytest.mark.unit(*UNITS)
def test_gpu_with_an_uncorrectable_error_gives_its_shard_back_and_takes_none_until_it_is_started(
    cluster: Cluster, operator: Operator, documents: Put, card: Card
) -> None:
    files = {f"log-{n:03}.txt": f"Day {n}. {SUBJECTS['sailing.txt']}" for n in range(60)}
    job = operator.submit(documents(files, LOG_DAYS), "testinfra-ill")
    wait_for(
        lambda: busy(cluster, card.slot),
        120,
        f"{card.slot} to take a shard",
        lambda: operator.run("show", job),
    )
    card.say(ecc_volatile=2, ecc_aggregate=2)
    ill = "its GPU is condemned: 2 uncorrectable ECC errors"
    wait_for(lambda: ill in said(operator, card), 60, "the errors to be seen", lambda: said(operator, card))
    wait_for(lambda: not busy(cluster, card.slot), 30, f"{card.slot} to give its shard back")
    now = rows(cluster, "SELECT now()")[0]
    assert "BAD" in said(operator, card)
    assert operator.attempt("check").rc != 0
    assert card.metric("healthy") == 0
    assert card.metric("uncorrectable_ecc_errors_total") == 2
    shown = operator.wait(job, 400)
    assert shown["state"] == "completed", shown
    assert rows(cluster, f"SELECT sum(crashes) FROM shards WHERE job_id = '{job}'") == ["0"]
    took = f"SELECT count(*) FROM shards WHERE slot = '{card.slot}' AND started_at > timestamptz '{now}'"
    assert rows(cluster, took) == ["0"]
    # The counters stay as they are: starting the service says that it is to go on.
    card.restart()
    wait_for(lambda: operator.attempt("check").rc == 0, 60, "the slot to be at work again")
    assert card.metric("healthy") == 1
    operator.run("collections", "drop", "testinfra-ill", "--yes")


@pytest.mark.unit(*UNITS)
def test_gpu_that_is_too_hot_rests_and_comes_back_by_itself(operator: Operator, card: Card) -> None:
    pid = card.unit("MainPID")
    card.say(reasons="0x40", temperature=93)
    hot = "its GPU is resting: thermal slowdown by the hardware at 93 degrees"
    wait_for(lambda: hot in said(operator, card), 30, "the heat to be seen", lambda: said(operator, card))
    assert card.metric("healthy") == 0
    assert "its GPU is resting" in card.unit("StatusText")
    card.say(reasons="0", temperature=60)
    wait_for(lambda: card.metric("healthy") == 1, 60, "the GPU to have rested")
    wait_for(lambda: operator.attempt("check").rc == 0, 30, "the slot to be at work again")
    assert card.unit("MainPID") == pid


@pytest.mark.unit(*UNITS)
def test_worker_whose_memory_cap_is_larger_than_its_gpu_does_not_start(card: Card) -> None:
    lines = f"[Service]\\nEnvironmentFile={DROPIN}.env\\n"
    card.host.check_output(
        f"mkdir -p $(dirname {DROPIN}) && echo MODEL_MAX_MEMORY_GB=64 > {DROPIN}.env && "
        f"printf '{lines}' > {DROPIN} && systemctl daemon-reload"
    )
    card.restart()
    assert card.unit("ActiveState") == "failed"
    assert card.unit("ExecMainStatus") == "78"
    journal = card.host.check_output(f"journalctl --unit {UNIT} --lines 20 --no-pager")
    assert f"MODEL_MAX_MEMORY_GB=64 is more than GPU {card.uuid} has, 22.5 GB" in journal


@pytest.mark.parametrize(
    ("values", "repaired", "reason"),
    [
        (
            {"compute_mode": 3, "processes": "4711"},
            {"processes": ""},
            "EXCLUSIVE_PROCESS, and process 4711 has it",
        ),
        ({"lost": 1}, {"lost": 0}, "is not there"),
    ],
    ids=["taken by another process", "off its bus"],
)  # fmt: skip
@pytest.mark.unit(*UNITS)
def test_worker_waits_for_its_gpu_says_why_and_starts_once_it_is_there(
    card: Card, values: dict[str, str | int], repaired: dict[str, str | int], reason: str
) -> None:
    card.say(**values)
    card.restart(wait=False)
    # Not the old process, which sees it too while it stops.
    wait_for(
        lambda: "waits for its GPU" in card.unit("StatusText") and reason in card.unit("StatusText"),
        60,
        f"the worker to say {reason!r}",
        lambda: card.unit("StatusText"),
    )
    assert card.unit("ActiveState") == "activating"
    card.say(**repaired)
    wait_for(lambda: card.unit("ActiveState") == "active", 120, "the worker to start")
