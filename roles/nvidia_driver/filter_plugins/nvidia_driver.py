"""What the driver's role decides on the controller: flavour, packages, kernels, versions, build errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: First PCI device id of each range, by the list of supported GPUs of NVIDIA's open kernel modules (README of
#: 595); what is newer than the last counts as of its kind. Before Turing there is no GSP, which the open
#: module needs.
GENERATIONS = (
    (0x0000, "Kepler or older"),
    (0x1340, "pre-Turing"),
    (0x1E00, "Turing"),
    (0x2080, "Ampere"),
    (0x2180, "Turing"),
    (0x2200, "Ampere"),
    (0x2300, "Hopper"),
    (0x2400, "Ampere"),
    (0x2600, "Ada"),
    (0x2900, "Blackwell"),
)
#: Ids of Grace Hopper, among Hopper's.
GRACE_HOPPER = (0x2342, 0x2345, 0x2348)
#: Branches of the driver that serve a generation, first and last (the same README; NVIDIA's word on 590).
BRANCHES = {"pre-Turing": (0, 580), "Blackwell": (570, 9999), "Grace Hopper": (535, 9999)}
#: From this branch on there is no proprietary module (NVIDIA's driver installation guide, 620).
OPEN_ALONE = 615
#: NVIDIA gave packages of its repositories other names from these branches on.
DEBIAN_CUDA, UBUNTU_PLAIN = 560, 590
#: Names of packages: [module's flavour], userspace of the module's version, and what has versions of its own.
#: {n} is the branch, {v} the version. Sources: Debian's and Ubuntu's archives, NVIDIA's installation guide.
PACKAGES: dict[str, dict[str, list[str]]] = {
    "distribution Debian": {
        "proprietary": ["nvidia-kernel-dkms", "nvidia-kernel-support"],
        "open": ["nvidia-open-kernel-dkms", "nvidia-open-kernel-support"],
        "userspace": [
            *("libcuda1", "libnvidia-ml1", "libnvidia-cfg1", "libnvidia-ptxjitcompiler1", "nvidia-smi"),
            *("nvidia-alternative", "firmware-nvidia-gsp"),
        ],
        "beside": ["nvidia-persistenced", "nvidia-modprobe"],
    },
    "cuda_repository Debian": {
        "proprietary": ["nvidia-kernel-dkms"],
        "open": ["nvidia-kernel-open-dkms"],
        "userspace": [
            *(
                "nvidia-driver-cuda",
                "libcuda1",
                "libnvidia-ml1",
                "libnvidia-cfg1",
                "libnvidia-ptxjitcompiler1",
            ),
            *("nvidia-kernel-support", "firmware-nvidia-gsp", "nvidia-persistenced", "nvidia-modprobe"),
        ],
        "beside": [],
    },
    "distribution Ubuntu": {
        "proprietary": ["nvidia-dkms-{n}-server", "nvidia-kernel-source-{n}-server"],
        "open": ["nvidia-dkms-{n}-server-open", "nvidia-kernel-source-{n}-server-open"],
        "userspace": [
            *("libnvidia-compute-{n}-server", "libnvidia-cfg1-{n}-server", "nvidia-utils-{n}-server"),
            *("nvidia-compute-utils-{n}-server", "nvidia-kernel-common-{n}-server"),
            "nvidia-firmware-{n}-server-{v}",
        ],
        "beside": [],
    },
    "cuda_repository Ubuntu numbered": {
        "proprietary": ["nvidia-dkms-{n}", "nvidia-kernel-source-{n}"],
        "open": ["nvidia-dkms-{n}-open", "nvidia-kernel-source-{n}-open"],
        "userspace": [
            *("libnvidia-compute-{n}", "libnvidia-cfg1-{n}", "nvidia-utils-{n}", "nvidia-compute-utils-{n}"),
            *("nvidia-kernel-common-{n}", "nvidia-firmware-{n}-{v}"),
        ],
        "beside": [],
    },
    "cuda_repository Ubuntu": {
        "proprietary": ["nvidia-dkms", "nvidia-kernel-source"],
        "open": ["nvidia-dkms-open", "nvidia-kernel-source-open"],
        "userspace": [
            *("libnvidia-compute", "libnvidia-cfg1", "nvidia-kernel-common", "nvidia-firmware"),
            *("nvidia-persistenced", "nvidia-modprobe"),
        ],
        "beside": [],
    },
}
#: From these branches on, names without the branch.
FABRIC_PLAIN, DCGM_CUDA13 = 580, 580
#: What a compiler, make or NVIDIA's own configuration test prints where a build fails.
_ERROR = re.compile(r"\berror:|\*\*\* |^ERROR|implicit declaration|undefined!|No such file or directory")
_KERNEL_IMAGE = re.compile(r"linux-image-(?:unsigned-)?(\d\S*)")
_KERNEL_META = re.compile(r"linux-image-((?!unsigned)[a-z]\S*)")


def generation(device: str) -> str:
    """Return the architecture of a PCI device id ("0x27b8"), "Grace Hopper" apart from Hopper."""
    number = int(device.rpartition(":")[2], 16)
    if number in GRACE_HOPPER:
        return "Grace Hopper"
    return next(name for first, name in reversed(GENERATIONS) if number >= first)


def flavour(devices: Iterable[str], wanted: str, source: str) -> dict[str, Any]:
    """Return `flavour` of the kernel module for these PCI device ids, and the `problems` with it.

    The open module is required from Grace Hopper and Blackwell on, and unsupported before Turing. Between
    them `auto` takes NVIDIA's choice, the open one, where NVIDIA made the packages, and the proprietary one
    of a distribution, whose older open modules do not build for each of its kernels.
    """
    kinds = sorted({generation(device) for device in devices})
    if "Kepler or older" in kinds:
        problem = "GPUs of Kepler's generation and older have no driver that is still made: take them out"
        return {"flavour": "proprietary", "generations": kinds, "problems": [problem]}
    need_open = [kind for kind in kinds if kind in ("Grace Hopper", "Blackwell")]
    refuse_open = [kind for kind in kinds if kind == "pre-Turing"]
    problems = []
    if need_open and refuse_open:
        problems.append(
            f"GPUs of {', '.join(need_open)} need the open kernel module and those before Turing the "
            "proprietary one: no driver serves both in one host"
        )
    suits = source != "distribution" and bool(kinds) and not refuse_open
    chosen = wanted if wanted != "auto" else "open" if need_open or suits else "proprietary"
    if not problems and chosen == "proprietary" and need_open:
        problems.append(
            f"nvidia_driver_flavour is proprietary, and {', '.join(need_open)} work with the open kernel "
            "module alone: set it to open or auto"
        )
    if not problems and chosen == "open" and refuse_open:
        problems.append(
            "nvidia_driver_flavour is open, and GPUs before Turing work with the proprietary kernel module "
            "alone: set it to proprietary or auto"
        )
    return {"flavour": chosen, "generations": kinds, "problems": problems}


def branch_problems(kinds: Iterable[str], chosen: str, version: str) -> list[str]:
    """Say which of the GPUs' generations a version does not serve, or that it has no such module."""
    branch = int(version.partition(".")[0] or 0)
    found = []
    for kind in kinds:
        first, last = BRANCHES.get(kind, (0, 9999))
        if branch < first:
            found.append(f"driver {version} does not know {kind} GPUs: they need branch {first} or newer")
        elif branch > last:
            found.append(f"driver {version} has dropped GPUs before Turing: branch {last} is their last")
    if chosen == "proprietary" and branch >= OPEN_ALONE:
        found.append(f"driver {version} has the open kernel module alone: set nvidia_driver_flavour to open")
    return found


def packages(kind: str, family: str, chosen: str, version: str) -> dict[str, list[str]]:
    """Return names: `module` (of the flavour), `other` (of the other), `userspace`, `beside`.

    `kind` is distribution or cuda_repository, `version` the driver's own, such as 550.163.01, which Ubuntu's
    names contain; all of `module` and `userspace` have it, `beside` have versions of their own.
    """
    branch = version.partition(".")[0]
    key = f"{kind} {family}"
    if key == "cuda_repository Ubuntu" and branch and int(branch) < UBUNTU_PLAIN:
        key += " numbered"
    table = PACKAGES[key]

    def named(part: str) -> list[str]:
        return [name.format(n=branch, v=version) for name in table[part]]

    other = "proprietary" if chosen == "open" else "open"
    return {
        "module": named(chosen),
        "other": named(other),
        "userspace": named("userspace"),
        "beside": named("beside"),
    }


def fabric(kind: str, family: str, version: str, *, nvlink5: bool) -> dict[str, Any]:
    """Return the `packages` of the fabric manager that switches between GPUs need, and the `problems`.

    `exact` are of the driver's version, without which the fabric manager ends at once; `beside` have others.
    """
    branch = int(version.partition(".")[0] or 0)
    if kind == "distribution" and (family == "Debian" or nvlink5):
        problem = (
            f"NVSwitches need the fabric manager, and {family} has none"
            f"{' for NVLink 5' if nvlink5 and family != 'Debian' else ''}: "
            "set nvidia_driver_source to cuda_repository"
        )
        return {"exact": [], "beside": [], "problems": [problem]}
    plain = kind == "cuda_repository" and branch >= FABRIC_PLAIN
    tail = "" if plain else f"-{branch}"
    exact = [f"nvidia-fabricmanager{tail}"] + ([f"libnvsdm{tail}"] if nvlink5 else [])
    return {"exact": exact, "beside": ["nvlsm"] if nvlink5 else [], "problems": []}


def dcgm(version: str) -> list[str]:
    """Return the packages of DCGM 4 for the CUDA that the driver brings."""
    major = 13 if int(version.partition(".")[0] or 0) >= DCGM_CUDA13 else 12
    return [f"datacenter-gpu-manager-4-cuda{major}"]


def sources(targets: Iterable[str], components: Sequence[str], own: str) -> list[dict[str, str]]:
    """Return `uri`, `suite`, `signed_by` of each archive of the distribution, as apt has its main component.

    `targets`: lines of `apt-get indextargets`, "URI|suite|component|signed by|origin|file:line". An archive
    that another file than `own` names with all of `components` is left out: apt complains of what is named
    twice.
    """
    has: dict[tuple[str, str, str], set[str]] = {}
    for line in targets:
        uri, suite, component, signed_by, origin, entry = (line.split("|") + [""] * 6)[:6]
        if origin in ("Debian", "Ubuntu") and entry.rpartition(":")[0] != own:
            # apt prints a field that is not set as it was asked for.
            signed_by = "" if signed_by.startswith("$(") else signed_by
            has.setdefault((uri, suite, signed_by), set()).add(component)
    return [
        {"uri": uri, "suite": suite, "signed_by": signed_by}
        for (uri, suite, signed_by), there in sorted(has.items())
        if "main" in there and not there.issuperset(components)
    ]


def fingerprints(listing: str) -> list[str]:
    """Return the primary keys' fingerprints in `gpg --show-keys --with-colons`, not their subkeys'."""
    found = []
    kind = ""
    for line in listing.splitlines():
        fields = line.split(":")
        if fields[0] in ("pub", "sub"):
            kind = fields[0]
        elif fields[0] == "fpr" and kind == "pub":
            found.append(fields[9])
    return found


def offered(madison: str) -> list[str]:
    """Return the versions of a package that apt can get, newest first, from `apt-cache madison`."""
    rows = [line.split("|") for line in madison.splitlines()]
    return list(dict.fromkeys(row[1].strip() for row in rows if len(row) > 1 and "Packages" in row[-1]))


def upstream(version: str) -> str:
    """Return the driver's version in a package's: 550.163.01-2 and 1:550.163.01-0ubuntu1 have 550.163.01."""
    return version.rpartition(":")[2].partition("-")[0]


def dpkg(listing: str) -> dict[str, list[dict[str, str]]]:
    """Return package_facts' `packages` from dpkg-query's lines "status version architecture package".

    As there, a package of another architecture than dpkg's own is named package:architecture.
    """
    rows = [line.split(" ") for line in listing.splitlines()]
    native = next((row[2] for row in rows if row[3] == "dpkg"), "")
    found: dict[str, list[dict[str, str]]] = {}
    for status, version, architecture, name in rows:
        if status not in ("not-installed", "config-files"):
            full = name if architecture in (native, "all") else f"{name}:{architecture}"
            found.setdefault(full, []).append({"name": name, "version": version, "arch": architecture})
    return found


def kernels(installed: Mapping[str, Any], running: str, in_container: bool) -> dict[str, list[str]]:
    """Return the `kernels` that a module is needed for, and the packages of their `headers`.

    `installed`: package_facts. The kernel that runs counts also where no package brought it; a container's is
    its machine's.
    """
    found = sorted({match[1] for name in installed if (match := _KERNEL_IMAGE.fullmatch(name))})
    found = [kernel for kernel in found if not kernel.endswith(("-dbg", "-unsigned"))]
    metas = {f"linux-headers-{m[1]}" for name in installed if (m := _KERNEL_META.fullmatch(name))}
    headers = {f"linux-headers-{kernel}" for kernel in found}
    if running not in found and not in_container:
        found.append(running)
    return {
        "kernels": found,
        "headers": sorted(headers | {name for name in metas if not name.endswith("-dbg")}),
    }


def unbuilt(status: str, wanted: Sequence[str], version: str) -> list[str]:
    """Return the kernels for which `dkms status` does not show this driver's module as installed."""
    line = re.compile(
        rf"^nvidia[^/,]*[/,]\s*{re.escape(version)},\s*([^,]+),[^:]*:\s*installed", re.MULTILINE
    )
    built = {match[1].strip() for match in line.finditer(status)}
    return [kernel for kernel in wanted if kernel not in built]


def build_errors(log: str, most: int = 12) -> list[str]:
    """Return the lines of a DKMS build's log that say why it failed, without repeats; else its end."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = list(dict.fromkeys(line for line in lines if _ERROR.search(line)))
    return (told or lines[-most:])[:most]


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "nvidia_flavour": flavour,
            "nvidia_branch_problems": branch_problems,
            "nvidia_packages": packages,
            "nvidia_fabric": fabric,
            "nvidia_dcgm": dcgm,
            "nvidia_sources": sources,
            "nvidia_fingerprints": fingerprints,
            "nvidia_offered": offered,
            "nvidia_upstream": upstream,
            "nvidia_dpkg": dpkg,
            "nvidia_kernels": kernels,
            "nvidia_unbuilt": unbuilt,
            "nvidia_build_errors": build_errors,
        }
