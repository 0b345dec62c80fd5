"""GPU stand-ins of a host: device nodes without a driver, nvidia-smi and NVML that answer from files."""

import json
import uuid
from pathlib import Path

from semantik_lab.errors import LabError
from semantik_lab.shell import run, write
from semantik_lab.topology import Host

STANDINS = Path(__file__).resolve().parent.parent / "standins"
#: Such as every libc since 2.34 has: the library runs on hosts older than the machine that compiles it.
_PLAIN_C = ("-std=c11", "-D_POSIX_C_SOURCE=200809L")

# What the real driver uses: 195 for GPUs and the control node, a dynamic number for unified memory.
_MAJOR, _CONTROL, _MODESET, _UVM_MAJOR = 195, 255, 254, 510
_DRIVER, _CUDA = "550.163.01", "12.4"
#: What an L4 can be set to, and is as it comes (W).
_SETTABLE = {
    "current_ecc": "Enabled",
    "min_power_limit": 40.0,
    "max_power_limit": 72.0,
    "power_limit": 72.0,
}
_NAMESPACE = uuid.UUID("6b3c1f0a-5d0e-4f7c-9f52-1f3d8e0c7a11")


def gpu_uuid(lab: str, host: str, index: int) -> str:
    """Return the stand-in's UUID: another for each GPU, the same whenever the lab is made again."""
    return f"GPU-{uuid.uuid5(_NAMESPACE, f'{lab}/{host}/{index}')}"


def fixture(lab: str, host: Host) -> str:
    """Return the file that the nvidia-smi stand-in answers from."""
    gpus = [
        {
            "index": index,
            "uuid": gpu_uuid(lab, host.name, index),
            "name": gpu.name,
            "pci_bus_id": gpu.pci_bus_id,
            "minor": gpu.minor,
            "memory_mib": gpu.memory_mib,
            "pci_device_id": gpu.pci_device_id,
            "compute_cap": gpu.compute_cap,
            **_SETTABLE,
        }
        for index, gpu in enumerate(host.gpus)
    ]
    return json.dumps({"driver_version": _DRIVER, "cuda_version": _CUDA, "gpus": gpus}, indent=2) + "\n"


def conditions(lab: str, host: Host) -> str:
    """Return the file that the NVML stand-in answers from: every GPU is well."""
    return "driver 0\n" + "".join(
        f"gpu {gpu_uuid(lab, host.name, index)}\n"
        f"  name {gpu.name}\n  minor {gpu.minor}\n  memory_mib {gpu.memory_mib}\n"
        "  ecc_volatile 0\n  ecc_aggregate 0\n  remap_pending 0\n  remap_failed 0\n"
        "  temperature 41\n  reasons 0\n  compute_mode 0\n  sm_mhz 2040\n  power_mw 60000\n"
        "  processes\n  events 1\n"
        for index, gpu in enumerate(host.gpus)
    )


def install(root: Path, lab: str, host: Host) -> None:
    """Give a host's tree its stand-ins. Raises LabError where NVML's cannot be compiled."""
    write(root / "etc/semantik-lab/gpus.json", fixture(lab, host))
    write(root / "etc/semantik-lab/nvml.conf", conditions(lab, host))
    write(root / "etc/tmpfiles.d/semantik-lab-gpus.conf", device_nodes(host))
    write(root / "usr/bin/nvidia-smi", (STANDINS / "nvidia-smi").read_text(encoding="utf-8"), 0o755)
    # What a card keeps in itself, the stand-in keeps in a file, which the unit that sets it could not write.
    write(
        root / "etc/systemd/system/semantik-gpu-settings.service.d/50-lab.conf",
        "[Service]\nReadWritePaths=/etc/semantik-lab\n",
    )
    libraries = next(root.glob("usr/lib/*-linux-gnu"), None)
    if libraries is None:
        raise LabError(f"{root} has no usr/lib/*-linux-gnu: it is no Debian tree")
    name = "libnvidia-ml.so.1"
    flags = [*_PLAIN_C, "-O1", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
    run(
        ["cc", *flags, "-o", str(libraries / name), str(STANDINS / "nvml.c")],
        what=f"compiling the stand-in of {name} for {host.name}",
    )


def device_nodes(host: Host) -> str:
    """Return the tmpfiles.d lines that make the device nodes at each boot."""
    nodes = {f"nvidia{gpu.minor}": (_MAJOR, gpu.minor) for gpu in host.gpus}
    nodes |= {
        "nvidiactl": (_MAJOR, _CONTROL),
        "nvidia-modeset": (_MAJOR, _MODESET),
        "nvidia-uvm": (_UVM_MAJOR, 0),
        "nvidia-uvm-tools": (_UVM_MAJOR, 1),
    }
    lines = [
        "# GPU stand-ins of the lab: nodes without a driver; opening one that a unit may use gives ENXIO."
    ]
    lines += [
        f"c /dev/{name} 0666 root root - {major}:{minor}" for name, (major, minor) in sorted(nodes.items())
    ]
    return "\n".join(lines) + "\n"
