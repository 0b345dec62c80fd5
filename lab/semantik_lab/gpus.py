"""GPU stand-ins of a host: device nodes without a driver, and an nvidia-smi that answers from a file."""

import json
import uuid
from pathlib import Path

from semantik_lab.topology import Host

STANDIN = Path(__file__).resolve().parent.parent / "standins" / "nvidia-smi"

# What the real driver uses: 195 for GPUs and the control node, a dynamic number for unified memory.
_MAJOR, _CONTROL, _MODESET, _UVM_MAJOR = 195, 255, 254, 510
_DRIVER, _CUDA = "550.163.01", "12.4"
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
        }
        for index, gpu in enumerate(host.gpus)
    ]
    return json.dumps({"driver_version": _DRIVER, "cuda_version": _CUDA, "gpus": gpus}, indent=2) + "\n"


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
