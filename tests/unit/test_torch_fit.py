"""Which build of torch fits drivers and GPUs: what is refused in which words, what warns, what is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch_fit
import torch_tables
from torch_hosts import PIN, Gpu, Host

TORCH = "2.13.0"
L4 = Gpu("NVIDIA L4", (8, 9))
A100 = Gpu("NVIDIA A100-SXM4-80GB", (8, 0))
V100 = Gpu("Tesla V100-SXM2-32GB", (7, 0))
P100 = Gpu("Tesla P100-PCIE-16GB", (6, 0))
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0))
B200 = Gpu("NVIDIA B200", (10, 0))
B300 = Gpu("NVIDIA B300 SXM6 AC", (10, 3))
RTX6000 = Gpu("NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0))
FUTURE = Gpu("NVIDIA Something", (13, 0))


def host(name: str, driver: str, *gpus: Gpu, **more: Any) -> Host:
    """A host of the kind that most are."""
    return Host(name, more.pop("machine", "x86_64"), driver, gpus, **more)


def refusals(build: str, *hosts: Host, torch: str = TORCH, **more: str) -> list[str]:
    return torch_fit.judge(torch, build, hosts, more).refusals


def warnings(build: str, *hosts: Host, torch: str = TORCH) -> list[str]:
    return torch_fit.judge(torch, build, hosts, {}).warnings


def test_a_driver_that_is_too_old_says_which_of_the_two_to_change() -> None:
    assert refusals("cu130", host("gpu1", "550.163.01", L4)) == [
        "gpu1: driver 550.163.01 serves CUDA up to 12.4 (12.x by minor version compatibility) and torch "
        "2.13.0+cu130 needs driver 580 or newer: set wheelhouse_torch to cu126, or nvidia_driver_version to "
        "580 or newer"
    ]


def test_a_driver_that_serves_no_build_leaves_the_driver_to_change() -> None:
    [line] = refusals("cu126", host("gpu1", "470.256.02", L4))
    assert (
        "serves CUDA 11.x by minor version compatibility and torch 2.13.0+cu126 needs driver 525 or newer"
        in line
    )
    assert line.endswith(": set nvidia_driver_version to 525 or newer")


def test_minor_version_compatibility_is_enough_and_its_catch_is_noted() -> None:
    report = torch_fit.judge(TORCH, "cu126", [host("gpu1", "525.60.13", L4)], {})
    assert (report.refusals, report.warnings) == ([], [])
    [note] = report.notes
    assert "by minor version compatibility" in note
    assert "(PTX) needs 560.28.03 or newer" in note
    # The toolkit's own driver has no catch, and a newer one serves older builds.
    for driver in ("560.28.03", "580.95.05", "610.43.02"):
        assert torch_fit.judge(TORCH, "cu126", [host("gpu1", driver, L4)], {}) == torch_fit.Report()


@pytest.mark.parametrize("driver", ["525.147.05", "535.54.03", "570.26", "579.99"])
def test_cuda_13_begins_with_driver_580(driver: str) -> None:
    assert refusals("cu130", host("gpu1", driver, L4))
    assert refusals("cu130", host("gpu1", "580.65.06", L4)) == []


def test_a_gpu_that_is_too_old_for_cuda_13() -> None:
    for gpu, name in ((V100, "(Volta 7.0)"), (P100, "(Pascal 6.0)")):
        [line] = refusals("cu130", host("gpu1", "580.95.05", gpu))
        assert f"torch 2.13.0+cu130 has no kernels for {gpu.name} {name}, only for 7.5, 8.0" in line
        assert line.endswith(": set wheelhouse_torch to cu126")


def test_a_gpu_that_is_too_new_for_cuda_12() -> None:
    for gpu in (B200, B300, RTX6000):
        [line] = refusals("cu126", host("gpu1", "580.95.05", gpu))
        assert f"has no kernels for {gpu}" in line
        assert line.endswith(": set wheelhouse_torch to cu130")
    assert refusals("cu130", host("gpu1", "580.95.05", B200, B300, RTX6000)) == []


def test_blackwell_under_a_driver_of_cuda_12_needs_both_changed() -> None:
    blackwell = host("gpu2", "570.124.06", B200)
    [line] = refusals("cu126", host("gpu1", "580.95.05", L4), blackwell)
    assert line.startswith("gpu2: torch 2.13.0+cu126 has no kernels for NVIDIA B200 (Blackwell 10.0)")
    assert line.endswith(": set wheelhouse_torch to cu130 and nvidia_driver_version to 580 or newer on gpu2")
    assert refusals("cu128", blackwell, torch="2.11.0") == [], "CUDA 12.8 was the first with kernels for it"


def test_machine_code_runs_on_later_gpus_of_its_generation_alone() -> None:
    found = torch_tables.kernels("8.0 8.6 9.0")
    assert [found.run_on(each) for each in ((8, 0), (8, 6), (8, 9), (9, 0), (7, 5), (10, 0))] == [
        *(True, True, True, True, False, False),
    ]


def test_ptx_serves_what_no_machine_code_does_if_the_driver_can_compile_it() -> None:
    # 2.13.0 has PTX in its CUDA 13 builds, 2.13.1 has none.
    assert refusals("cu130", host("gpu1", "590.44.01", FUTURE)) == []
    [line] = refusals("cu132", host("gpu1", "590.44.01", FUTURE))
    assert "needs driver 595.45.04 or newer to compile its PTX for NVIDIA Something (13.0)" in line
    assert "set wheelhouse_torch to cu130, or nvidia_driver_version to 595.45.04 or newer" in line
    assert "has no kernels for" in refusals("cu130", host("gpu1", "590.44.01", FUTURE), torch="2.13.1")[0]


def test_one_torch_must_serve_all_models() -> None:
    mixed = [host("gpu1", "580.95.05", V100), host("gpu2", "580.95.05", B200)]
    for build, name in (("cu126", "gpu2"), ("cu130", "gpu1")):
        [line] = refusals(build, *mixed)
        assert line.startswith(f"{name}: ")
        assert line.endswith(
            ": no build of torch 2.13.0 has kernels for every GPU of the workers: take some out of that group"
        )
    [both] = refusals("cu130", host("gpu1", "580.95.05", V100, L4, P100, L4))
    assert (
        "no kernels for Tesla V100-SXM2-32GB (Volta 7.0) and Tesla P100-PCIE-16GB (Pascal 6.0), only" in both
    )


def test_eight_equal_gpus_are_named_once() -> None:
    [line] = refusals("cu126", host("gpu1", "580.95.05", *[B200] * 8))
    assert line.count("B200") == 1
    assert refusals("cu130", host("gpu1", "580.95.05", *[B200] * 8)) == []


def test_arm_has_kernels_of_its_own() -> None:
    assert refusals("cu130", host("gpu1", "580.95.05", H100, machine="aarch64")) == []
    assert refusals("cu130", host("gpu1", "580.95.05", Gpu("NVIDIA T4", (7, 5)), machine="aarch64"))


def test_a_pinned_driver_that_does_not_know_the_gpu() -> None:
    assert refusals("cu130", host("gpu1", "565.57.01", RTX6000, planned=PIN)) == [
        f"gpu1: driver 565.57.01 (nvidia_driver_version) does not know {RTX6000}: "
        "set nvidia_driver_version to 570 or newer"
    ]
    assert refusals("cu126", host("gpu1", "590", V100, planned=PIN)) == [
        f"gpu1: driver 590 (nvidia_driver_version) no longer knows {V100}: set nvidia_driver_version to 580"
    ]
    assert refusals("cu126", host("gpu1", "580", V100, planned=PIN)) == []


def test_who_brings_the_driver_says_how_to_get_another() -> None:
    debian = {"source": "distribution", "system": "Debian 13"}
    [line] = refusals("cu130", host("gpu1", "550.163.01", L4, **debian))
    assert line.endswith(
        ": set wheelhouse_torch to cu126, or nvidia_driver_version to 580 or newer "
        "(nvidia_driver_source: cuda_repository)"
    )
    [line] = refusals("cu126", host("gpu1", "470.256.02", L4, **debian))
    assert line.endswith(": set nvidia_driver_version to 525 or newer"), "which the distribution has"
    [line] = refusals("cu130", host("gpu1", "550.163.01", L4, source="none"))
    assert line.endswith(": set wheelhouse_torch to cu126, or its driver to 580 or newer")


def test_what_a_distribution_is_expected_to_have_steers_the_choice_and_refuses_nothing() -> None:
    fresh = host("gpu1", "550", L4, planned="Debian 13", source="distribution", system="Debian 13")
    assert torch_fit.choose(TORCH, [fresh], {}) == "cu126"
    assert refusals("cu130", fresh) == []
    assert warnings("cu130", fresh) == [
        "gpu1: driver 550 (Debian 13's) serves CUDA up to 12.4 (12.x by minor version compatibility) and "
        "torch 2.13.0+cu130 needs driver 580 or newer: set wheelhouse_torch to cu126, or "
        "nvidia_driver_version to 580 or newer (nvidia_driver_source: cuda_repository)"
    ]
    # That a build has no kernels for a GPU does not hang on the driver.
    assert refusals("cu130", host("gpu1", "550", V100, planned="Debian 13"))


def test_the_cpu_build_beside_gpus_warns_and_contradicts_cuda() -> None:
    assert refusals("cpu", host("gpu1", "580.95.05", L4)) == []
    assert "leaves NVIDIA L4 (Ada Lovelace 8.9) idle" in warnings("cpu", host("gpu1", "580.95.05", L4))[0]
    [line] = refusals("cpu", host("gpu1", "580.95.05", L4, device="cuda"))
    assert line.endswith("worker_device is cuda: set wheelhouse_torch to cu130")


def test_hosts_on_the_cpu_ask_for_nothing() -> None:
    hosts = [host("gpu1", "", device="cpu"), host("gpu2", "470.10", L4, device="cpu"), host("gpu3", "")]
    for build in ("cpu", "cu126", "cu130"):
        assert torch_fit.judge(TORCH, build, hosts, {}) == torch_fit.Report()
    assert torch_fit.choose(TORCH, hosts, {}) == "cpu"


def test_what_nobody_knows_warns() -> None:
    assert (
        "which GPUs torch 9.9.0+cu130 has kernels for is not known here"
        in warnings("cu130", host("gpu1", "580.95.05", L4), torch="9.9.0")[0]
    )
    assert (
        "which driver torch 2.13.0+cu140 needs is not known" in warnings("cu140", host("gpu1", "999", L4))[0]
    )
    assert (
        "the compute capability of NVIDIA X is not known"
        in warnings("cu130", host("gpu1", "580.95.05", Gpu("NVIDIA X", ())))[0]
    )
    assert "no driver answers" in warnings("cu130", host("gpu1", "", L4))[0]
    for build in ("cu130", "cu140"):
        assert refusals(build, host("gpu1", "999", Gpu("NVIDIA X", ())), torch="9.9.0") == []


def test_the_inventory_may_know_better() -> None:
    volta = host("gpu1", "580.95.05", V100)
    assert refusals("cu128", volta) == [], "not in the table, so not refused"
    assert "has no kernels for Tesla V100" in refusals("cu128", volta, cu128="7.5 8.0")[0]
    assert refusals("cu130", volta, cu130="7.0;7.5") == []
    with pytest.raises(ValueError, match="'sm_70' is no compute capability"):
        torch_tables.kernels("7.5 sm_70")


def test_a_gpu_that_the_driver_does_not_show_is_named() -> None:
    hidden = Gpu("GPU 0000:01:00.0", (10, 0), shown=False)
    [line] = warnings("cu126", host("gpu1", "550.163.01", L4, hidden))
    assert (
        line
        == "gpu1: driver 550.163.01 does not show GPU 0000:01:00.0 (Blackwell 10.0); it needs 570 or newer"
    )
    # Before there is a driver, all that the bus shows is what torch will have to serve.
    assert "has no kernels for GPU 0000:01:00.0" in refusals("cu126", host("gpu1", "", hidden))[0]


@pytest.mark.parametrize(
    ("hosts", "build"),
    [
        ([], "cpu"),
        ([host("gpu1", "550.163.01", L4)], "cu126"),
        ([host("gpu1", "580.95.05", L4)], "cu130"),
        ([host("gpu1", "610.43.02", L4)], "cu130"),  # 13.2 is experimental in 2.13
        ([host("gpu1", "580.95.05", L4), host("gpu2", "550.163.01", A100)], "cu126"),
        ([host("gpu1", "580.95.05", V100, H100)], "cu126"),
        ([host("gpu1", "580.95.05", *[H100] * 8), host("gpu2", "580.95.05", B200)], "cu130"),
        ([host("gpu1", "580.95.05", L4), host("gpu2", "", device="cpu")], "cu130"),
        ([host("gpu1", "", L4)], "cu130"),
        # None serves both: the one that serves most, whose refusal is then shown.
        (
            [
                host("gpu1", "580.95.05", B200),
                host("gpu2", "580.95.05", B200),
                host("gpu3", "580.95.05", V100),
            ],
            "cu130",
        ),
    ],
)
def test_auto_takes_the_newest_build_that_serves_every_host(hosts: list[Host], build: str) -> None:
    assert torch_fit.choose(TORCH, hosts, {}) == build


def test_auto_knows_experimental_builds_that_the_inventory_names_and_no_other_release() -> None:
    modern = [host("gpu1", "610.43.02", L4)]
    assert torch_fit.choose(TORCH, modern, {"cu132": "8.0 9.0"}) == "cu132"
    assert torch_fit.choose("2.14.0", modern, {}) == "cu132"
    assert torch_fit.choose("9.9.0", modern, {}) == ""


def test_a_run_that_sees_a_part_of_the_hosts_keeps_what_the_cluster_has() -> None:
    modern, old = host("gpu1", "580.95.05", L4), host("gpu2", "550.163.01", L4)
    assert torch_fit.choose(TORCH, [modern], {}, before="cu126") == "cu126"
    assert torch_fit.choose(TORCH, [old], {}, before="cu130") == "cu126"
    assert torch_fit.choose(TORCH, [], {}, before="cu126") == "cu126"


def test_builds_that_are_refused_are_listed_for_whatever_is_found() -> None:
    listed = torch_fit.refused(TORCH, [host("gpu1", "550.163.01", L4)], {})
    assert set(listed) == {"cu130", "cu131", "cu132", "cu133"}
    chosen = torch_fit.refused(
        TORCH, [host("gpu1", "550.163.01", L4), host("gpu2", "", device="cpu")], {}, "cu126"
    )
    assert chosen["cpu"] == [
        "gpu1: torch 2.13.0+cpu leaves NVIDIA L4 (Ada Lovelace 8.9) idle: "
        "set wheelhouse_torch to cpu if that is wanted"
    ]
    assert torch_fit.refused(TORCH, [host("gpu1", "", device="cpu")], {}) == {}
