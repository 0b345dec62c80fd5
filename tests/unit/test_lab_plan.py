"""What `lab up` settles on before it changes anything, and what it says when a machine cannot run the lab."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from semantik_lab import doctor, lab, network, state
from semantik_lab.errors import LabError
from semantik_lab.topology import DEFAULT_TOPOLOGY


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    monkeypatch.setattr(network, "machine_networks", lambda: {"eth0": [IPv4Network("192.0.2.0/24")]})


def plan(name: str, **wanted: object) -> tuple[lab.Lab, bool]:
    """Plan a lab and write it down, as `up` does."""
    arguments = {"subnet": None, "topology": None, "hosts": (), "inventory_path": None} | wanted
    made, fresh = lab._plan(name, *arguments.values())  # type: ignore[arg-type]
    made.record.save(made.paths)
    return made, fresh


def test_the_default_lab_writes_the_repositorys_inventory():
    made, fresh = plan("semantik")
    assert fresh
    assert made.record.subnet == IPv4Network("10.77.0.0/24")
    assert made.record.inventory == DEFAULT_TOPOLOGY.parents[1] / "inventories" / "lab" / "hosts.yml"
    assert [node.address for node in made.nodes()] == ["10.77.0.11", "10.77.0.21", "10.77.0.22"]


def test_labs_beside_it_differ_in_subnet_bridge_and_inventory():
    labs = [plan(name)[0] for name in ("semantik", "second", "third")]
    assert [str(one.record.subnet) for one in labs] == ["10.77.0.0/24", "10.77.1.0/24", "10.77.2.0/24"]
    assert len({one.bridge for one in labs}) == 3
    assert labs[1].record.inventory == state.STATE / "second" / "hosts.yml"


def test_a_lab_keeps_its_hosts_and_takes_more():
    assert [node.host.name for node in plan("one", hosts=["gpu2"])[0].nodes()] == ["gpu2"]
    assert [node.host.name for node in plan("one")[0].nodes()] == ["gpu2"]
    made, fresh = plan("one", hosts=["head"])
    assert not fresh
    assert [node.host.name for node in made.nodes()] == ["head", "gpu2"]


def test_a_lab_with_all_hosts_stays_whole_when_one_is_named():
    plan("all")
    assert len(plan("all", hosts=["gpu1"])[0].nodes()) == 3


def test_what_a_lab_is_made_of_does_not_change_below_it(tmp_path: Path):
    plan("one", subnet="10.80.0.0/24")
    assert plan("one", subnet="10.80.0.0/24")[0].record.subnet == IPv4Network("10.80.0.0/24")
    with pytest.raises(LabError, match=r"has subnet 10\.80\.0\.0/24; `lab/lab destroy --name one`"):
        plan("one", subnet="10.81.0.0/24")
    other = tmp_path / "other.toml"
    other.write_text(DEFAULT_TOPOLOGY.read_text())
    with pytest.raises(LabError, match="lab one is made from"):
        plan("one", topology=other)


def test_a_subnet_in_use_is_refused():
    plan("one", subnet="10.80.0.0/24")
    with pytest.raises(LabError, match=r"overlaps 10\.80\.0\.0/24 of lab one"):
        plan("two", subnet="10.80.0.0/25")
    with pytest.raises(LabError, match="of interface eth0"):
        plan("two", subnet="192.0.2.0/28")


def test_a_host_that_the_lab_lacks_is_named():
    with pytest.raises(LabError, match="lab one has no host head; it has gpu1"):
        plan("one", hosts=["gpu1"])[0].nodes(["head"])


def test_a_machine_that_lacks_something_gets_one_line_to_install_it():
    findings = [
        doctor.Finding("running as root", True, "run it with sudo"),
        doctor.Finding("program squid", False, "install squid-openssl", "squid-openssl"),
        doctor.Finding("program mmdebstrap", False, "install mmdebstrap", "mmdebstrap"),
        doctor.Finding("5 GB free below /var/lib", False, "make room: 1.0 GB are free"),
    ]
    with pytest.raises(LabError) as caught:
        doctor.require_good(findings)
    message = str(caught.value)
    assert "5 GB free below /var/lib (make room: 1.0 GB are free)" in message
    assert message.endswith("\n  apt-get install --no-install-recommends mmdebstrap squid-openssl")
    assert "running as root" not in message


def test_a_good_machine_passes():
    doctor.require_good([doctor.Finding("anything", True, "", "package")])
