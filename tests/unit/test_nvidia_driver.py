"""What the driver's role decides: flavour by device, packages by source, kernels, versions, build errors."""

from __future__ import annotations

from typing import Any

import nvidia_driver as driver
import pytest

#: PCI device ids, from the list of supported GPUs in NVIDIA's open kernel modules and from pci.ids.
K80, P100, V100, T4, GTX1660 = "0x102d", "0x15f8", "0x1db4", "0x1eb8", "0x2184"
A100, A10, H100, H200, GH200, L4 = "0x20b0", "0x2236", "0x2330", "0x2335", "0x2342", "10de:27b8"
B200, B300, RTX6000 = "0x2901", "0x3182", "0x2bb5"


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (K80, "Kepler or older"), (P100, "pre-Turing"), (V100, "pre-Turing"), (T4, "Turing"),
        (GTX1660, "Turing"), (A100, "Ampere"),
        (A10, "Ampere"), (H100, "Hopper"), (H200, "Hopper"), (GH200, "Grace Hopper"), (L4, "Ada"),
        (B200, "Blackwell"), (B300, "Blackwell"), (RTX6000, "Blackwell"),
    ],
)  # fmt: skip
def test_a_device_id_tells_the_generation(device: str, name: str) -> None:
    assert driver.generation(device) == name


@pytest.mark.parametrize(
    ("devices", "source", "chosen"),
    [
        ([B200, B200], "distribution", "open"),
        ([GH200], "cuda_repository", "open"),
        ([B200, T4], "distribution", "open"),
        ([V100], "cuda_repository", "proprietary"),
        ([V100, A100], "cuda_repository", "proprietary"),
        ([A100, H100], "cuda_repository", "open"),
        ([A100, L4], "distribution", "proprietary"),
    ],
)
def test_auto_takes_the_module_that_serves_every_gpu(devices: list[str], source: str, chosen: str) -> None:
    answer = driver.flavour(devices, "auto", source)
    assert (answer["flavour"], answer["problems"]) == (chosen, [])


@pytest.mark.parametrize(
    ("devices", "wanted", "words"),
    [
        ([B200], "proprietary", "Blackwell work with the open kernel module alone"),
        ([P100], "open", "before Turing work with the proprietary kernel module alone"),
        ([P100, B200], "auto", "no driver serves both in one host"),
        ([K80, A100], "auto", "no driver that is still made"),
    ],
)
def test_a_module_that_cannot_serve_a_gpu_is_refused(devices: list[str], wanted: str, words: str) -> None:
    problems = driver.flavour(devices, wanted, "cuda_repository")["problems"]
    assert len(problems) == 1 and words in problems[0]


def test_a_wish_that_can_be_met_is() -> None:
    assert driver.flavour([A100], "open", "distribution")["flavour"] == "open"
    assert driver.flavour([H100], "proprietary", "cuda_repository")["flavour"] == "proprietary"


@pytest.mark.parametrize(
    ("kinds", "chosen", "version", "words"),
    [
        (["Blackwell"], "open", "550.163.01", "need branch 570 or newer"),
        (["pre-Turing"], "proprietary", "590.48.01", "branch 580 is their last"),
        (["Ampere"], "proprietary", "615.71.09", "the open kernel module alone"),
    ],
)
def test_a_version_that_does_not_serve_a_gpu_is_refused(
    kinds: list[str], chosen: str, version: str, words: str
) -> None:
    problems = driver.branch_problems(kinds, chosen, version)
    assert len(problems) == 1 and words in problems[0]
    assert driver.branch_problems(["Turing", "Blackwell"], "open", "580.95.05") == []


def test_packages_have_the_names_of_their_source() -> None:
    def module(*arguments: str) -> list[str]:
        return driver.packages(*arguments)["module"]

    assert module("distribution", "Debian", "open", "")[0] == "nvidia-open-kernel-dkms"
    assert module("cuda_repository", "Debian", "open", "580.95.05") == ["nvidia-kernel-open-dkms"]
    assert module("cuda_repository", "Ubuntu", "proprietary", "580.95.05")[0] == "nvidia-dkms-580"
    assert module("cuda_repository", "Ubuntu", "open", "590.48.01")[0] == "nvidia-dkms-open"
    server = driver.packages("distribution", "Ubuntu", "open", "570.172.08")
    assert server["module"][0] == "nvidia-dkms-570-server-open"
    assert server["other"][0] == "nvidia-dkms-570-server"
    assert "nvidia-firmware-570-server-570.172.08" in server["userspace"]
    # Debian releases these two apart; NVIDIA's own are of the driver's version.
    assert driver.packages("distribution", "Debian", "open", "")["beside"][0] == "nvidia-persistenced"
    assert "nvidia-persistenced" in driver.packages("cuda_repository", "Debian", "open", "")["userspace"]


def test_switches_get_a_fabric_manager_of_the_drivers_version() -> None:
    def fabric(kind: str, family: str, version: str, nvlink5: bool = False) -> list[str]:
        answer = driver.fabric(kind, family, version, nvlink5=nvlink5)
        assert answer["problems"] == []
        return [*answer["exact"], *answer["beside"]]

    assert fabric("cuda_repository", "Debian", "580.95.05") == ["nvidia-fabricmanager"]
    assert fabric("cuda_repository", "Ubuntu", "570.172.08") == ["nvidia-fabricmanager-570"]
    assert fabric("distribution", "Ubuntu", "580.95.05") == ["nvidia-fabricmanager-580"]
    assert fabric("cuda_repository", "Ubuntu", "580.95.05", True) == [
        "nvidia-fabricmanager",
        "libnvsdm",
        "nvlsm",
    ]
    for kind, family, nvlink5 in (("distribution", "Debian", False), ("distribution", "Ubuntu", True)):
        answer = driver.fabric(kind, family, "580.95.05", nvlink5=nvlink5)
        assert "set nvidia_driver_source to cuda_repository" in answer["problems"][0]
    assert driver.dcgm("570.172.08") == ["datacenter-gpu-manager-4-cuda12"]
    assert driver.dcgm("590.48.01") == ["datacenter-gpu-manager-4-cuda13"]


def test_an_archive_is_named_once_with_what_lies_apart() -> None:
    lines = [
        "http://a/debian|trixie|main|/usr/share/keyrings/d.gpg|Debian|/etc/apt/sources.list.d/debian.sources:1",
        "http://a/debian|trixie-updates|main|/usr/share/keyrings/d.gpg|Debian|/etc/apt/x.sources:1",
        "http://b/debian|trixie|main||Debian|/etc/apt/sources.list:1",
        "http://b/debian|trixie|contrib||Debian|/etc/apt/sources.list:1",
        "http://b/debian|trixie|non-free||Debian|/etc/apt/sources.list:1",
        "http://a/debian|trixie|non-free|/usr/share/keyrings/d.gpg|Debian|/own:1",
        "http://d/debian|trixie|main|$(SIGNED_BY)|Debian|/etc/apt/sources.list:9",
        "http://c/tools|stable|main||Somebody|/etc/apt/y.sources:1",
    ]
    found = driver.sources(lines, ["contrib", "non-free"], "/own")
    assert [(one["uri"], one["suite"], one["signed_by"]) for one in found] == [
        ("http://a/debian", "trixie", "/usr/share/keyrings/d.gpg"),
        ("http://a/debian", "trixie-updates", "/usr/share/keyrings/d.gpg"),
        ("http://d/debian", "trixie", ""),
    ]


def test_the_fingerprint_of_a_key_is_not_that_of_its_subkey() -> None:
    primary, sub = "A62056FBC36BCF3F50785960E41AE4D84616BAE7", "1" * 40
    listing = (
        "tru::1:1:0:3:1:5\n"
        f"pub:-:3072:1:E41AE4D84616BAE7:1795706141:::-:::scSC::::::23::0:\nfpr:::::::::{primary}:\n"
        "uid:-::::1795706141::15072F::Somebody::::::::::0:\n"
        f"sub:-:3072:1:1111:1795706141::::::e::::::23:\nfpr:::::::::{sub}:\n"
    )
    assert driver.fingerprints(listing) == [primary]
    assert driver.fingerprints("") == []


def test_versions_are_read_as_apt_writes_them() -> None:
    madison = (
        " nvidia-kernel-dkms | 550.163.01-2 | http://a/debian trixie/non-free amd64 Packages\n"
        " nvidia-kernel-dkms | 550.163.01-2 | http://b/debian trixie/non-free amd64 Packages\n"
        " nvidia-graphics-drivers | 550.163.01-2 | http://a/debian trixie/non-free Sources\n"
        " nvidia-kernel-dkms | 535.261.03-1 | http://a/debian bookworm/non-free amd64 Packages\n"
    )
    assert driver.offered(madison) == ["550.163.01-2", "535.261.03-1"]
    assert driver.offered("") == []
    assert [driver.upstream(text) for text in ("550.163.01-2", "1:580.95.05-0ubuntu1", "")] == [
        "550.163.01",
        "580.95.05",
        "",
    ]


def installed(*names: str) -> dict[str, Any]:
    """Return package_facts with these packages."""
    return {name: [{}] for name in names}


def test_every_kernel_gets_its_headers_and_the_next_one_too() -> None:
    found = driver.kernels(
        installed(
            *("linux-image-6.1.0-37-amd64", "linux-image-6.1.0-40-amd64", "linux-image-amd64"),
            *("linux-image-6.1.0-40-amd64-dbg", "linux-base", "linux-image-amd64-dbg"),
        ),
        "6.1.0-40-amd64",
        False,
    )
    assert found == {
        "kernels": ["6.1.0-37-amd64", "6.1.0-40-amd64"],
        "headers": [
            "linux-headers-6.1.0-37-amd64",
            "linux-headers-6.1.0-40-amd64",
            "linux-headers-amd64",
        ],
    }
    ubuntu = driver.kernels(
        installed(
            "linux-image-6.8.0-60-generic", "linux-image-unsigned-6.8.0-61-generic", "linux-image-generic"
        ),
        "6.8.0-60-generic",
        False,
    )
    assert ubuntu["kernels"] == ["6.8.0-60-generic", "6.8.0-61-generic"]
    assert "linux-headers-generic" in ubuntu["headers"]


def test_a_kernel_of_ones_own_counts_and_a_containers_is_not_its_own() -> None:
    assert driver.kernels({}, "6.18.1-own", False) == {"kernels": ["6.18.1-own"], "headers": []}
    assert driver.kernels({}, "6.18.1-own", True) == {"kernels": [], "headers": []}


STATUS = (
    "nvidia-current/550.163.01, 6.12.27-amd64, x86_64: installed\n"
    "nvidia-current/550.163.01, 6.12.33-amd64, x86_64: built\n"
    "nvidia/535.261.03, 6.1.0-40-amd64, x86_64: installed (Original modules exist)\n"
    "zfs/2.2.7, 6.12.33-amd64, x86_64: installed\n"
)


def test_only_an_installed_module_of_this_version_counts_as_built() -> None:
    wanted = ["6.12.27-amd64", "6.12.33-amd64"]
    assert driver.unbuilt(STATUS, wanted, "550.163.01") == ["6.12.33-amd64"]
    assert driver.unbuilt(STATUS, wanted, "550.163.02") == wanted
    assert driver.unbuilt(STATUS, ["6.1.0-40-amd64"], "535.261.03") == []
    assert driver.unbuilt("", wanted, "550.163.01") == wanted


def test_a_builds_log_is_cut_to_the_lines_that_say_why() -> None:
    log = (
        "DKMS make.log for nvidia-current-open\nmake[1]: Entering directory\n"
        "  CC [M]  nvidia/nv.o\n/x/nv-drm.c:12:5: error: implicit declaration of function 'f'\n"
        "/x/nv-drm.c:12:5: error: implicit declaration of function 'f'\n"
        "make[2]: *** [scripts/Makefile.build:229: nv-drm.o] Error 1\nmake: Leaving directory\n"
    )
    assert driver.build_errors(log) == [
        "/x/nv-drm.c:12:5: error: implicit declaration of function 'f'",
        "make[2]: *** [scripts/Makefile.build:229: nv-drm.o] Error 1",
    ]
    assert driver.build_errors("one\n\ntwo\n", most=1) == ["two"]
    assert driver.build_errors("") == []


def test_dpkgs_list_is_read_as_package_facts_does() -> None:
    listing = """\
config-files 535.1-1 amd64 nvidia-smi
not-installed  amd64 nvidia-alternative
installed 1.21.22 amd64 dpkg
installed 550.163.01-2 amd64 libcuda1
installed 550.163.01-2 i386 libcuda1
half-configured 550.163.01-2 amd64 nvidia-kernel-dkms
installed 2024.1 all tzdata
"""
    found = driver.dpkg(listing)
    assert sorted(found) == ["dpkg", "libcuda1", "libcuda1:i386", "nvidia-kernel-dkms", "tzdata"]
    assert found["libcuda1"] == [{"name": "libcuda1", "version": "550.163.01-2", "arch": "amd64"}]
