"""Names and addresses of the lab's network."""

from ipaddress import IPv4Network

import pytest

from semantik_lab.errors import LabError
from semantik_lab.network import bridge_address, bridge_name, check_subnet, choose_subnet, host_address
from semantik_lab.topology import Host

SUBNET = IPv4Network("10.77.0.0/24")


def host(address: int) -> Host:
    return Host("gpu1", "bookworm", address, (), 0, ())


def test_the_machine_has_the_first_address():
    assert str(bridge_address(SUBNET)) == "10.77.0.1"


def test_a_host_has_its_number_in_whatever_subnet():
    assert str(host_address(SUBNET, host(21))) == "10.77.0.21"
    assert str(host_address(IPv4Network("172.20.5.16/28"), host(3))) == "172.20.5.19"


@pytest.mark.parametrize("number", [0, 1, 255, 256, -1])
def test_addresses_that_are_not_a_hosts_are_refused(number: int):
    with pytest.raises(LabError, match="choose one from 2 to 254"):
        host_address(SUBNET, host(number))


def test_bridge_names_fit_the_kernel_and_differ():
    assert bridge_name("semantik") == "smk-semantik"
    names = {bridge_name(f"a-rather-long-lab-name-{index}") for index in range(20)}
    assert len(names) == 20
    assert all(len(name) <= 15 for name in names)


def test_another_lab_takes_the_next_free_network():
    taken = [SUBNET, IPv4Network("10.77.1.128/25")]
    assert choose_subnet(SUBNET, taken) == IPv4Network("10.77.2.0/24")
    assert choose_subnet(SUBNET, []) == SUBNET
    with pytest.raises(LabError, match="--subnet"):
        choose_subnet(SUBNET, [IPv4Network("10.0.0.0/8")])


def test_an_overlap_names_its_owner():
    with pytest.raises(LabError, match=r"10\.77\.0\.0/24 overlaps 10\.0\.0\.0/8 of interface eth0"):
        check_subnet(SUBNET, {"interface eth0": [IPv4Network("10.0.0.0/8")]})
