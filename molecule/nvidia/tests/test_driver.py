"""The driver on hosts with kernels of their own: built, of one version, held; a failed build, explained."""

from __future__ import annotations

import os
import re

import pytest
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

RUNNER = AnsibleRunner(os.environ["MOLECULE_INVENTORY_FILE"])
#: With the distribution's driver, and with NVIDIA's own of a repository like NVIDIA's.
HOSTS, SWITCHED = ["driver12", "driver13"], "switched"
#: What Debian ships, of each release; with another point release the tests go by what is installed.
BRANCH = {"driver12": "535", "driver13": "550"}
MODULE = "nvidia-kernel-dkms"
USERSPACE = ["libcuda1", "libnvidia-ml1", "nvidia-smi", "libnvidia-ptxjitcompiler1", "firmware-nvidia-gsp"]


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return RUNNER.get_host(request.param)


def version(host: Host, package: str) -> str:
    """Return the driver's version in a package's."""
    return str(host.package(package).version).partition("-")[0]


def kernel(host: Host) -> str:
    """Return the host's own kernel, which is not the one that runs it."""
    return str(host.check_output("ls /boot/vmlinuz-*")).rpartition("vmlinuz-")[2]


def name_of(host: Host) -> str:
    """Return the host's name in the inventory."""
    return str(host.check_output("hostname"))


def test_module_is_built_for_the_hosts_kernel_and_of_the_libraries_version(host: Host) -> None:
    wanted = version(host, MODULE)
    assert wanted.partition(".")[0] == BRANCH[name_of(host)]
    own = kernel(host)
    assert own != host.check_output("uname -r")
    module = host.check_output(
        f"find /lib/modules/{own} -name 'nvidia.ko*' -o -name 'nvidia-current.ko*' | head -n 1"
    )
    assert host.check_output("modinfo -F version %s", module) == wanted
    assert host.check_output("modinfo -F vermagic %s", module).split()[0] == own
    assert {package: version(host, package) for package in USERSPACE} == dict.fromkeys(USERSPACE, wanted)


def test_headers_came_with_the_kernel_and_will_come_with_the_next(host: Host) -> None:
    assert host.file(f"/lib/modules/{kernel(host)}/build").exists
    assert host.package("linux-headers-amd64").is_installed


def test_apt_keeps_the_version(host: Host) -> None:
    held = host.check_output("apt-mark showhold").split()
    assert {MODULE, *USERSPACE} <= set(held)
    policy = host.check_output("apt-cache policy %s", MODULE)
    installed = re.search(r"Installed: (\S+)", policy)
    candidate = re.search(r"Candidate: (\S+)", policy)
    assert installed and candidate and installed[1] == candidate[1]
    simulated = host.check_output("apt-get --simulate dist-upgrade")
    assert not re.search(r"^Inst (nvidia|libnvidia|libcuda)", simulated, re.MULTILINE)
    blacklist = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert "^libcuda1$" in blacklist and "^nvidia-" in blacklist


def test_nouveau_is_kept_away_from_the_first_moment(host: Host) -> None:
    content = host.check_output(f"lsinitramfs /boot/initrd.img-{kernel(host)}").splitlines()
    assert "etc/modprobe.d/nvidia-driver-nouveau.conf" in content
    assert "blacklist nouveau" in host.check_output("modprobe --showconfig")


def test_a_host_without_a_card_has_a_driver_that_says_so(host: Host) -> None:
    asked = host.run("nvidia-smi")
    assert asked.rc != 0
    assert "couldn't communicate with the NVIDIA driver" in asked.stdout + asked.stderr


def test_switches_bring_a_fabric_manager_of_the_drivers_very_version_and_their_absence_none(
    host: Host,
) -> None:
    assert not host.package("nvidia-fabricmanager").is_installed
    switched = RUNNER.get_host(SWITCHED)
    exact = [
        *("nvidia-kernel-open-dkms", "nvidia-driver-cuda", "libcuda1", "libnvidia-ml1", "libnvidia-cfg1"),
        *("nvidia-kernel-support", "firmware-nvidia-gsp", "nvidia-persistenced", "nvidia-fabricmanager"),
    ]
    # The repository has 580.105.08 too.
    assert {package: version(switched, package) for package in exact} == dict.fromkeys(exact, "580.95.05")
    for unit in ("nvidia-fabricmanager", "nvidia-persistenced", "nvidia-dcgm"):
        assert switched.check_output("systemctl is-enabled %s.service", unit) == "enabled"


def test_nvidias_own_packages_are_built_held_and_left_alone_too() -> None:
    host = RUNNER.get_host(SWITCHED)
    module = host.check_output("find /lib/modules/%s -name 'nvidia.ko*'", kernel(host))
    assert host.check_output("modinfo -F version %s", module) == "580.95.05"
    held = host.check_output("apt-mark showhold").split()
    assert {"nvidia-kernel-open-dkms", "libcuda1", "nvidia-fabricmanager"} <= set(held)
    assert "580.105.08" in host.check_output("apt-cache madison libcuda1")
    host.check_output("apt-mark unhold libcuda1")
    try:
        simulated = host.check_output("apt-get --simulate dist-upgrade")
    finally:
        host.check_output("apt-mark hold libcuda1")
    assert "libcuda1" not in simulated, "the pin alone does not keep the version"


def test_a_key_that_nobody_knows_is_refused_before_apt_reads_it() -> None:
    host = RUNNER.get_host(SWITCHED)
    said = host.file("/root/key-refused.txt").content_string
    assert re.search(r"key\.asc has the fingerprint\(s\) [0-9A-F]{40}", said)
    assert "the file is not the key that it should be" in said
    assert "nvidia-driver" not in host.file("/root/key-files.txt").content_string


def test_secure_boot_is_asked_for_before_anything_is_installed() -> None:
    said = RUNNER.get_host(SWITCHED).file("/root/secure-boot.txt").content_string
    assert "Secure Boot is on at switched" in said and "mokutil --import /var/lib/dkms/mok.pub" in said
    assert not {"dkms", "libcuda1", "nvidia-kernel-open-dkms"} & set(said.splitlines())


def test_a_build_that_fails_is_explained_and_undone() -> None:
    host = RUNNER.get_host("driver13")
    said = host.file("/root/open-failed.txt").content_string
    assert re.search(r"open kernel module of driver 550\.\S+ does not build on driver13", said)
    assert re.search(r"error", said), said
    assert "nvidia_driver_flavour: proprietary" in said
    assert "dpkg finds nothing broken" in said
    packages = host.file("/root/open-packages.txt").content_string
    states = dict(re.findall(r"^(\S+) (\S+)\s*$", packages, re.MULTILINE))
    assert states["dkms"] == "ii"
    assert "nouveau" not in packages, "the card is nouveau's again"
    assert not [name for name in states if name.startswith(("nvidia-open", "nvidia-kernel", "libcuda1"))]
    assert not [line for line in packages.splitlines() if "half" in line or line.startswith("E:")]


def test_an_upgrade_that_does_not_build_leaves_the_driver_of_before() -> None:
    host = RUNNER.get_host(SWITCHED)
    said = host.file("/root/upgrade-failed.txt").content_string
    assert "kernel module of driver 580.126.09 does not build on switched" in said
    assert "of_another_kernel" in said, "the compiler's own line"
    assert "The packages are as they were before; dpkg finds nothing broken." in said
    lines = host.file("/root/upgrade-packages.txt").content_string.splitlines()
    rows = [words for line in lines if len(words := line.split()) == 3]
    packages = {name: (state, whole) for name, state, whole in rows}
    exact = [
        *("nvidia-kernel-open-dkms", "nvidia-driver-cuda", "libcuda1", "libnvidia-ml1"),
        *("firmware-nvidia-gsp", "nvidia-persistenced", "nvidia-fabricmanager"),
    ]
    assert {name: packages[name] for name in exact} == dict.fromkeys(exact, ("hi", "580.95.05-1"))
    assert not [line for line in lines if "580.126.09" in line]
    assert "module 580.95.05" in lines
    assert {line for line in lines if line.startswith("Pin:")} == {"Pin: version 580.95.05-*"}
