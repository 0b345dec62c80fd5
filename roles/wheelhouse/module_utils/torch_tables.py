"""What NVIDIA and PyTorch document about drivers, CUDA, GPUs and the builds of torch: facts, no decisions.

Versions are tuples of integers, so that they compare: driver (550, 163, 1), CUDA (12, 6), compute capability
(8, 9). Each table names its source. What no source says is not here; who knows more says it in the inventory
(`wheelhouse_torch_architectures`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Version = tuple[int, ...]

#: CUDA -> the driver that its toolkit comes with and needs for everything it can do, Linux, first release of
#: each. https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/, "CUDA Toolkit and Corresponding Driver
#: Versions".
TOOLKIT_DRIVERS: dict[Version, Version] = {
    (11, 8): (520, 61, 5),
    (12, 0): (525, 60, 13),
    (12, 1): (530, 30, 2),
    (12, 2): (535, 54, 3),
    (12, 3): (545, 23, 6),
    (12, 4): (550, 54, 14),
    (12, 5): (555, 42, 2),
    (12, 6): (560, 28, 3),
    (12, 8): (570, 26),
    (12, 9): (575, 51, 3),
    (13, 0): (580, 65, 6),
    (13, 1): (590, 44, 1),
    (13, 2): (595, 45, 4),
    (13, 3): (610, 43, 2),
}

#: Major version of CUDA -> the oldest driver that runs what any of its minor versions compiled, "with limited
#: feature-set": what needs the newer driver fails, and so does PTX, which the driver would have to compile.
#: Newer drivers of whatever branch run it too. https://docs.nvidia.com/deploy/cuda-compatibility/, "Minor
#: Version Compatibility".
FAMILY_DRIVERS: dict[int, Version] = {11: (450, 80, 2), 12: (525,), 13: (580,)}

#: The last branch of drivers for compute capabilities below this: "The release 580 series will be the last to
#: support GPUs based on the Maxwell, Pascal, and Volta architectures" (NVIDIA, UNIX graphics feature
#: deprecation schedule).
LAST_BRANCH_BELOW: tuple[Version, int] = ((7, 5), 580)

#: Compute capability -> the first branch of drivers for it. CUDA 12.8, whose driver is of branch 570, is the
#: first that compiles for these two (https://docs.nvidia.com/cuda/cuda-features-archive/), and NVIDIA's GPU
#: operator asks for 570 on HGX B200 (its release notes 25.3). Older GPUs are known to every driver for CUDA
#: 12; for the other Blackwells (10.3, 11.0, 12.1) sources differ, so none is here.
FIRST_BRANCH: dict[Version, int] = {(10, 0): 570, (12, 0): 570}

#: Branch of a distribution's only driver, for a host that gets its first one from there.
#: https://packages.debian.org, nvidia-kernel-dkms, in November 2026.
DISTRIBUTION_BRANCHES: dict[str, int] = {"Debian 12": 535, "Debian 13": 550}

#: Compute capability -> name of the generation. https://developer.nvidia.com/cuda-gpus and, for those before
#: Turing, https://developer.nvidia.com/cuda-legacy-gpus.
GENERATIONS: dict[Version, str] = {
    (5, 0): "Maxwell",
    (5, 2): "Maxwell",
    (6, 0): "Pascal",
    (6, 1): "Pascal",
    (7, 0): "Volta",
    (7, 5): "Turing",
    (8, 0): "Ampere",
    (8, 6): "Ampere",
    (8, 9): "Ada Lovelace",
    (9, 0): "Hopper",
    (10, 0): "Blackwell",
    (10, 3): "Blackwell",
    (11, 0): "Blackwell",
    (12, 0): "Blackwell",
    (12, 1): "Blackwell",
}

#: First and last PCI device id of each chip family -> compute capability; for hosts whose driver does not
#: answer yet. Families by https://pci-ids.ucw.cz (vendor 10de) and the list of GPUs in the README of NVIDIA's
#: open kernel modules; their capabilities as above. Maxwell is taken for 5.0, the least it can be, which
#: every build for Maxwell has.
DEVICES: tuple[tuple[int, int, Version], ...] = (
    (0x1340, 0x15BF, (5, 0)),  # GM10x, GM20x
    (0x15C0, 0x15FF, (6, 0)),  # GP100
    (0x1600, 0x16FF, (5, 0)),
    (0x1720, 0x173F, (6, 0)),
    (0x1740, 0x17FF, (5, 0)),
    (0x1B00, 0x1D7F, (6, 1)),  # GP10x
    (0x1D80, 0x1DFF, (7, 0)),  # GV100
    (0x1E00, 0x1FFF, (7, 5)),  # TU10x
    (0x2080, 0x20FF, (8, 0)),  # GA100
    (0x2180, 0x21FF, (7, 5)),  # TU11x
    (0x2200, 0x227F, (8, 6)),  # GA102
    (0x2300, 0x23FF, (9, 0)),  # GH100
    (0x2400, 0x25FF, (8, 6)),  # GA10x
    (0x2600, 0x28FF, (8, 9)),  # AD10x
    (0x2900, 0x29FF, (10, 0)),  # GB100, GB102
    (0x2B00, 0x2B7F, (11, 0)),  # GB10B
    (0x2B80, 0x2DFF, (12, 0)),  # GB202 to GB207
    (0x2E00, 0x2E7F, (12, 1)),  # GB20B, GB10
    (0x2F00, 0x2F7F, (12, 0)),  # GB205
    (0x3180, 0x31FF, (10, 3)),  # GB110
)

#: Builds that a release publishes without calling them stable: taken when asked for, never chosen.
#: PyTorch's RELEASE.md, "Release Compatibility Matrix", column "Experimental CUDA".
EXPERIMENTAL: dict[str, frozenset[str]] = {"2.12": frozenset({"cu132"}), "2.13": frozenset({"cu132"})}

_LEGACY = "5.0 6.0 7.0 7.5 8.0 8.6 9.0"
_X86 = "7.5 8.0 8.6 9.0 10.0 12.0"
_ARM = "8.0 9.0 10.0 11.0 12.0"
#: Release of torch and machine -> build -> what it has kernels for, as in TORCH_CUDA_ARCH_LIST. PyTorch's
#: RELEASE.md, "PyTorch CUDA Support Matrix", as it stood for each release (changes #175253 for 2.11, #182849
#: for 2.12, #187075 for 2.13, #194367 and #197555 for 2.14). It says +PTX for CUDA 13; release builds are
#: made without (#157516, #175567, #188914), except where _PTX says otherwise.
_KERNELS: dict[tuple[str, str], dict[str, str]] = {
    ("2.11", "x86_64"): {"cu126": _LEGACY, "cu128": _X86, "cu130": _X86},
    ("2.11", "aarch64"): {"cu126": "8.0 9.0", "cu128": "8.0 9.0 10.0 12.0", "cu130": _ARM},
    ("2.12", "x86_64"): {"cu126": _LEGACY, "cu130": _X86, "cu132": _X86},
    ("2.12", "aarch64"): {"cu126": "8.0 9.0", "cu130": _ARM, "cu132": _ARM},
    ("2.13", "x86_64"): {"cu126": _LEGACY, "cu130": _X86, "cu132": _X86},
    ("2.13", "aarch64"): {"cu126": "8.0 9.0", "cu130": _ARM, "cu132": _ARM},
    ("2.14", "x86_64"): {"cu126": _LEGACY, "cu130": _X86, "cu132": _X86},
    ("2.14", "aarch64"): {"cu126": "8.0 9.0", "cu130": _ARM, "cu132": _ARM},
}
#: 2.13.0 was released with PTX for 12.0 in its CUDA 13 builds, by an oversight that #188925 mended for
#: 2.13.1.
_PTX: dict[str, dict[str, Version]] = {"2.13.0": {"cu130": (12, 0), "cu132": (12, 0)}}


@dataclass(frozen=True)
class Kernels:
    """What a build was compiled for: machine code by compute capability, and PTX for drivers to compile."""

    code: frozenset[Version]
    ptx: frozenset[Version] = frozenset()

    def run_on(self, capability: Version) -> bool:
        """Say whether its machine code runs: that of X.y does on X.z with z not below y.

        https://docs.nvidia.com/cuda/cuda-programming-guide/, "Binary Compatibility".
        """
        return any(each[0] == capability[0] and each <= capability for each in self.code)

    def compile_for(self, capability: Version) -> bool:
        """Say whether its PTX can be compiled for a GPU: that of an equal or lower capability can."""
        return any(each <= capability for each in self.ptx)

    def __str__(self) -> str:
        return ", ".join(
            text(each) + ("+PTX" if each in self.ptx else "") for each in sorted(self.code | self.ptx)
        )


def version(value: str) -> Version:
    """Read the numbers at the head of `550.163.01`, `12.6` or `580.x`; empty when there are none."""
    match = re.match(r"\d+(?:\.\d+)*", value.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def text(value: Version) -> str:
    """Write a CUDA version or a compute capability."""
    return ".".join(map(str, value))


def kernels(listed: str) -> Kernels:
    """Read a list like TORCH_CUDA_ARCH_LIST: `7.5;8.0 12.0+PTX`. Raises ValueError naming what is none."""
    code, ptx = set(), set()
    for word in re.split(r"[;,\s]+", listed.strip()):
        if not (match := re.fullmatch(r"(\d+\.\d)(\+PTX)?", word)):
            raise ValueError(f"{word!r} is no compute capability; write them like '7.5 8.0 12.0+PTX'")
        code.add(version(match[1]))
        if match[2]:
            ptx.add(version(match[1]))
    return Kernels(frozenset(code), frozenset(ptx))


def builds(torch: str, machine: str, more: Mapping[str, str] | None = None) -> dict[str, Kernels]:
    """Return the builds of a release of torch for a kind of machine (`x86_64`), without that for the CPU.

    `more` is what the inventory knows: build -> list of capabilities, before what stands here. A release that
    is not known has none but those. Raises ValueError where `more` holds no such list.
    """
    minor = text(version(torch)[:2])
    found = {name: kernels(listed) for name, listed in _KERNELS.get((minor, machine), {}).items()}
    for name, capability in _PTX.get(torch.partition("+")[0], {}).items():
        if name in found:
            found[name] = Kernels(found[name].code, frozenset({capability}))
    return found | {name: kernels(listed) for name, listed in (more or {}).items()}


def cuda_of_build(build: str) -> Version:
    """Return the CUDA version of a build (`cu126` is 12.6); empty for one without CUDA."""
    match = re.fullmatch(r"cu(\d{2})(\d)", build)
    return (int(match[1]), int(match[2])) if match else ()


def capability_of_device(device: str) -> Version:
    """Return the compute capability of a PCI device id (`27b8`); empty when it is not known."""
    try:
        number = int(device, 16)
    except ValueError:
        return ()
    return next((capability for first, last, capability in DEVICES if first <= number <= last), ())
