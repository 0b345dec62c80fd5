"""The unit files: what the design promises of each, and that the roles write every file that they read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "systemd").glob("*.service"))
CELERY = ["semantik-planner", "semantik-query", "semantik-worker@"]
#: What reads settings, keeps a connection to Redis and is supervised: every unit but the parser.
SERVICES = [*CELERY, "semantik-flower", "semantik-scheduler"]
SANDBOX = {
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateUsers": "yes",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "UMask": "0077",
    "LimitCORE": "0",
}


def read(name: str) -> dict[str, list[str]]:
    """Return directive -> values of a unit, in the order in which they stand."""
    directives: dict[str, list[str]] = {}
    for line in (ROOT / "systemd" / name).read_text().splitlines():
        key, found, value = line.partition("=")
        if found and not line.startswith("#"):
            directives.setdefault(key, []).append(value)
    return directives


#: They make links in /dev, set GPUs, let nvidia-smi load its module: root, and not sandboxed as the others.
ROOTS = ("semantik-gpu@", "semantik-gpu-settings")


@pytest.mark.parametrize(
    "unit", [unit for unit in UNITS if unit.stem not in ROOTS], ids=lambda path: path.stem
)
def test_every_service_is_sandboxed(unit: Path) -> None:
    directives = read(unit.name)
    assert {key: directives.get(key, [None])[0] for key in SANDBOX} == SANDBOX
    assert directives["SystemCallFilter"][:2] == ["@system-service", "~@privileged @resources"]
    assert directives["IPAddressDeny"] == ["any"]
    assert "root" not in directives.get("User", [])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_comes_back_however_often_redis_goes(name: str) -> None:
    directives = read(f"{name}.service")
    assert directives["Restart"] == ["always"]
    assert directives["StartLimitIntervalSec"] == ["0"]
    assert directives["Type"] == ["notify"]
    assert directives["KillMode"] == ["mixed"]


@pytest.mark.parametrize("name", CELERY)
def test_readiness_and_the_watchdog_may_come_from_the_child(name: str) -> None:
    directives = read(f"{name}.service")
    assert directives["NotifyAccess"] == ["all"]
    assert "AF_UNIX" in directives["RestrictAddressFamilies"][0]
    assert directives["OOMPolicy"] == ["continue"]
    assert int(directives["WatchdogSec"][0]) > 0
    assert "--without-gossip --without-mingle" in directives["ExecStart"][0]


@pytest.mark.parametrize(
    ("name", "limit", "low"),
    [("semantik-worker@", "4G", "2G"), ("semantik-flower", "512M", "256M")],
)
def test_memory_is_limited_as_documented(name: str, limit: str, low: str) -> None:
    directives = read(f"{name}.service")
    assert (directives["MemoryMax"], directives["MemoryLow"]) == ([limit], [low])


def test_a_worker_sees_the_nodes_that_gpus_share_and_those_of_its_slot() -> None:
    directives = read("semantik-worker@.service")
    assert directives["DevicePolicy"] == ["closed"]
    assert not [value for value in directives["DeviceAllow"] if re.search(r"/dev/nvidia\d", value)]
    # What makes the links comes first, at every start.
    for key in ("Wants", "After"):
        assert "semantik-gpu@%i.service" in directives[key][0].split()
    assert "RemainAfterExit" not in read("semantik-gpu@.service")
    # These break torch and CUDA.
    assert "MemoryDenyWriteExecute" not in directives
    assert "ProcSubset" not in directives
    assert "PrivateDevices" not in directives


def test_a_worker_of_a_slot_that_is_not_there_does_not_start() -> None:
    assert read("semantik-worker@.service")["AssertPathExists"] == ["/etc/semantik/gpu-%i.env"]


def test_questions_come_before_documents() -> None:
    query, worker, parser = (
        read(name)
        for name in ("semantik-query.service", "semantik-worker@.service", "semantik-parser@.service")
    )
    assert int(query["CPUWeight"][0]) >= 10 * int(worker["CPUWeight"][0])
    assert int(query["Nice"][0]) < 0 < int(worker["Nice"][0]) <= int(parser["Nice"][0])
    # Weights compare among siblings alone.
    assert query["Slice"] == worker["Slice"] == parser["Slice"]


def test_the_parser_has_no_network_no_secret_and_no_device() -> None:
    parser = read("semantik-parser@.service")
    assert parser["PrivateNetwork"] == ["yes"]
    assert parser["RestrictAddressFamilies"] == ["none"]
    assert parser["PrivateDevices"] == ["yes"]
    assert parser["DynamicUser"] == ["yes"]
    assert "LoadCredential" not in parser
    assert "EnvironmentFile" not in parser
    assert "/etc/semantik" in parser["InaccessiblePaths"][0].split()


def test_the_parsers_socket_is_for_the_services_alone_and_survives_a_storm() -> None:
    socket = read("semantik-parser.socket")
    assert (socket["SocketGroup"], socket["SocketMode"]) == (["semantik-svc"], ["0660"])
    assert socket["TriggerLimitIntervalSec"] == ["0"]
    assert socket["ListenStream"][0] in " ".join(read("semantik-worker@.service")["Environment"])


def test_the_query_worker_has_no_password_of_the_database() -> None:
    assert [value.partition(":")[0] for value in read("semantik-query.service")["LoadCredential"]] == [
        "redis_password"
    ]


@pytest.mark.parametrize("name", SERVICES)
def test_the_roles_write_every_file_that_a_service_reads(name: str) -> None:
    directives = read(f"{name}.service")
    roles = "".join(
        path.read_text()
        for role in ("release", "worker", "control", "flower")
        for path in (ROOT / "roles" / role).rglob("*.yml")
    )
    for credential in directives["LoadCredential"]:
        _, _, path = credential.partition(":")
        assert path.startswith("/etc/semantik/secrets/")
        assert re.search(rf"^ +{Path(path).name}: ", roles, re.MULTILINE), path
    for path in directives["EnvironmentFile"]:
        file = Path(path.removeprefix("-")).name
        written = rf"(?:/{re.escape(file)}\"?$|name: {file.removesuffix('.env')}\b)".replace(
            "gpu-%i", "gpu-{{ .*}}"
        )
        assert re.search(
            written.replace(re.escape("gpu-%i.env"), r"gpu-\{\{.*\}\}\.env"), roles, re.MULTILINE
        ), file


def test_secrets_stand_in_no_environment() -> None:
    for unit in UNITS:
        assert not re.search(r"(?im)^Environment=.*(password|secret|key)", unit.read_text()), unit.name


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_time_to_stop_is_longer_than_the_time_to_drain(unit: Path) -> None:
    if unit.stem == "semantik-worker@":
        assert int(read(unit.name)["TimeoutStopSec"][0]) >= 60 + 30
    else:
        assert int(read(unit.name)["TimeoutStopSec"][0]) <= 120
