#!/usr/bin/python3
"""Find a host's GPUs and number its slots."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: gpu_slots
short_description: Find a host's GPUs and number its slots
description:
  - Reads C(nvidia-smi -q -x). Slots are numbered in PCI bus order, which no driver changes.
  - Changes nothing. Fails when the GPUs are not those that the inventory promises.
options:
  slots:
    description: C(auto) for one slot per GPU, or the number that there must be.
    type: str
    default: auto
  device:
    description: With C(cpu), a host without GPUs has as many slots as C(slots) says.
    type: str
    default: auto
author: Semantik cluster
"""

RETURN = """
slots:
  description: >-
    For each slot C(uuid), C(minor) (of /dev/nvidiaN), C(bus_id), C(name), C(memory_mib) and C(numa_node)
    (-1 where the host has one node); of a slot without a GPU, C(uuid) is empty.
  type: list
  returned: always
"""

#: A slot on a host without GPUs.
NO_GPU = {"uuid": "", "minor": -1, "bus_id": "", "name": "CPU", "memory_mib": 0, "numa_node": -1}
DEVICES = Path("/sys/bus/pci/devices")


class SlotError(Exception):
    """The GPUs are not what the inventory says; the message says what to do."""


def text_of(gpu: ElementTree.Element, path: str) -> str:
    """Return an element's text. Raises SlotError when nvidia-smi did not report it."""
    value = (gpu.findtext(path) or "").strip()
    if not value:
        raise SlotError(f"nvidia-smi -q -x reports no {path} for GPU {gpu.get('id')}: is its driver whole?")
    return value


def parse(xml: str) -> list[dict[str, Any]]:
    """Return the GPUs of `nvidia-smi -q -x` in PCI bus order."""
    gpus = []
    for gpu in ElementTree.fromstring(xml).iter("gpu"):  # noqa: S314 (the driver's own tool wrote it)
        bus_id = (gpu.get("id") or "").lower()
        if gpu.findtext("mig_mode/current_mig") == "Enabled":
            raise SlotError(
                f"MIG is enabled on GPU {bus_id}, and a slot needs a whole GPU: nvidia-smi -i {bus_id} -mig 0"
            )
        memory = re.match(r"\d+", text_of(gpu, "fb_memory_usage/total"))
        gpus.append(
            {
                "uuid": text_of(gpu, "uuid"),
                "minor": int(text_of(gpu, "minor_number")),
                "bus_id": bus_id,
                "name": text_of(gpu, "product_name"),
                "memory_mib": int(memory[0]) if memory else 0,
            }
        )
    return sorted(gpus, key=lambda gpu: [int(part, 16) for part in re.split(r"[:.]", gpu["bus_id"])])


def numa_node(bus_id: str, devices: Path = DEVICES) -> int:
    """Return the NUMA node of a PCI device, -1 where the kernel knows none."""
    domain, _, rest = bus_id.partition(":")
    # nvidia-smi writes the domain with eight digits, the kernel with four.
    path = devices / f"{int(domain, 16):04x}:{rest}" / "numa_node"
    return int(path.read_text(encoding="ascii")) if path.is_file() else -1


def choose(gpus: Sequence[dict[str, Any]], slots: str, device: str) -> list[dict[str, Any]]:
    """Return the slots. Raises SlotError when there are not the GPUs that `slots` asks for."""
    if slots == "auto":
        if not gpus:
            raise SlotError(
                "no GPU found: is the NVIDIA driver installed (nvidia-smi -L)? "
                "For workers on the CPU set worker_device to cpu and worker_slots to a number"
            )
        return list(gpus)
    if not slots.isdigit() or int(slots) == 0:
        raise SlotError(f"worker_slots is {slots!r}: use auto, or a number above 0")
    if not gpus and device == "cpu":
        return [dict(NO_GPU) for _ in range(int(slots))]
    if int(slots) > len(gpus):
        raise SlotError(
            f"worker_slots asks for {slots} GPUs and the driver shows {len(gpus)}: "
            "one fell off the bus (dmesg | grep -i nvrm), or the inventory is wrong"
        )
    return list(gpus[: int(slots)])


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "slots": {"type": "str", "default": "auto"},
            "device": {"type": "str", "default": "auto"},
        },
        supports_check_mode=True,
    )
    gpus: list[dict[str, Any]] = []
    if program := module.get_bin_path("nvidia-smi"):
        status, output, errors = module.run_command([program, "-q", "-x"])
        if status != 0:
            module.fail_json(msg=f"nvidia-smi -q -x failed: {(errors or output).strip()[-500:]}")
        try:
            gpus = [{**gpu, "numa_node": numa_node(gpu["bus_id"])} for gpu in parse(output)]
        except (SlotError, ElementTree.ParseError) as error:
            module.fail_json(msg=str(error))
    try:
        module.exit_json(changed=False, slots=choose(gpus, module.params["slots"], module.params["device"]))
    except SlotError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
