"""Which slot is which GPU: decided on the controller, from what a host reports of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: A slot on a host without GPUs.
NO_GPU = {"uuid": "", "minor": -1, "bus_id": "", "name": "CPU", "memory_mib": 0, "numa_node": -1}
#: Of a GPU's report, what a slot's settings are made from.
_KEPT = ("minor", "bus_id", "name", "memory_mib", "numa_node")


def parts(report: Mapping[str, Any], without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what can be a slot, in the order of the bus: whole GPUs, and MIG devices of those cut up.

    `without`: UUIDs of GPUs that are to have no slot.
    """
    found = []
    for gpu in report["gpus"]:
        if gpu["uuid"] in without:
            continue
        base = {name: gpu[name] for name in _KEPT}
        if not gpu["mig_enabled"]:
            found.append({**base, "uuid": gpu["uuid"]})
        for part in gpu["mig"]:
            name = f"{gpu['name']} MIG {part['profile']}"
            found.append({**base, "uuid": part["uuid"], "name": name, "memory_mib": part["memory_mib"]})
    return found


def number(found: Sequence[dict[str, Any]], bound: Mapping[str, str], count: int) -> list[dict[str, Any]]:
    """Give `count` of the GPUs their slots: the one that each has had, others the lowest that are free.

    `bound`: slot -> UUID as the host's settings have it.
    """
    by_uuid = {part["uuid"]: part for part in found}
    slots: dict[int, dict[str, Any]] = {}
    for slot, uuid in sorted(bound.items(), key=lambda item: int(item[0])):
        if uuid in by_uuid and len(slots) < count:
            slots[int(slot)] = by_uuid.pop(uuid)
    free = (slot for slot in range(len(slots) + len(found)) if slot not in slots)
    for part, slot in zip(list(by_uuid.values())[: count - len(slots)], list(free), strict=False):
        slots[slot] = part
    return [{"slot": slot, **slots[slot]} for slot in sorted(slots)]


def missing(report: Mapping[str, Any], models: Mapping[str, int]) -> list[str]:
    """Say which GPUs of those that the inventory promises the host does not have, and what became of them."""
    there = Counter(gpu["name"] for gpu in report["gpus"])
    short = [
        f"{wanted} x {name}, and the driver shows {there[name]}"
        for name, wanted in models.items()
        if there[name] < int(wanted)
    ]
    if not short:
        return []
    shown = ", ".join(f"{n} x {name}" for name, n in sorted(there.items())) or "none"
    return [f"worker_gpu_models promises {'; '.join(short)} (all that is there: {shown}){lost(report)}"]


def lost(report: Mapping[str, Any]) -> str:
    """Say which GPUs are on the bus and not the driver's."""
    if not report["lost"]:
        return ""
    return (
        f". On the PCI bus, but not shown by the driver: {', '.join(report['lost'])} "
        "(dmesg | grep -i -e nvrm -e xid)"
    )


def without_gpu(slots: str, device: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the slots of a host on which the driver shows no GPU."""
    if slots != "auto" and device == "cpu":
        return {"slots": [{"slot": slot, **NO_GPU} for slot in range(int(slots))], "problems": []}
    said = f" ({report['error']})" if report["error"] else ""
    asked = f"worker_slots asks for {slots} GPUs and " if slots != "auto" else ""
    return {
        "slots": [],
        "problems": [
            f"{asked}no GPU found{said}: is the NVIDIA driver installed (nvidia-smi -L)?{lost(report)} "
            "For workers on the CPU set worker_device to cpu and worker_slots to a number"
        ],
    }


def gpu_slots(
    report: Mapping[str, Any],
    slots: Any = "auto",
    device: str = "auto",
    models: Mapping[str, int] | None = None,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Return `slots` of a host and the `problems` that forbid to make them.

    `without` has the UUIDs of GPUs that are to have none. `report` is what semantik_gpus.py prints. Each slot
    has its number and its GPU's uuid, minor, bus_id, name, memory_mib and numa_node; without a GPU the uuid
    is empty and the numbers are -1.
    """
    slots = str(slots)
    if slots != "auto" and (not slots.isdigit() or int(slots) == 0):
        return {"slots": [], "problems": [f"worker_slots is {slots!r}: use auto, or a number above 0"]}
    problems = missing(report, models or {})
    found = parts(report, without)
    problems += [
        f"worker_gpu_exclude names {uuid!r}: write whole GPUs by UUID, as nvidia-smi -L does (GPU-...)"
        for uuid in without
        if not str(uuid).startswith("GPU-")
    ]
    if not report["gpus"]:
        answer = without_gpu(slots, device, report)
        return {"slots": answer["slots"], "problems": [*problems, *answer["problems"]]}
    empty = [
        gpu["bus_id"]
        for gpu in report["gpus"]
        if gpu["mig_enabled"] and not gpu["mig"] and gpu["uuid"] not in without
    ]
    problems += [
        f"GPU {bus_id} is in MIG mode and has no MIG device: make some (nvidia_driver_mig_profiles, or "
        f"nvidia-smi mig -cgi), or leave the mode (nvidia_driver_mig, or nvidia-smi -i {bus_id} -mig 0)"
        for bus_id in empty
    ]
    count = len(found) if slots == "auto" else int(slots)
    if not found and not empty:
        problems.append("worker_gpu_exclude names every GPU: take the host out of the group workers instead")
    elif count > len(found):
        problems.append(
            f"worker_slots asks for {count} GPUs and the driver shows {len(found)}{lost(report)}"
            + (
                " beside those of worker_gpu_exclude: lower worker_slots, or leave it at auto"
                if without
                else ": one fell off the bus, or the inventory is wrong"
            )
        )
    return {"slots": number(found, report["slots"], count), "problems": problems}


def ill(report: Mapping[str, Any]) -> list[str]:
    """Return one line for each GPU with which something is wrong, or that the driver does not show."""
    found = [
        f"GPU {gpu['bus_id']}: {'; '.join(gpu['troubles'])}" for gpu in report["gpus"] if gpu["troubles"]
    ]
    if report["gpus"] and report["error"]:
        found.append(report["error"])
    return found + [
        f"GPU {bus_id}: on the PCI bus, but not shown by the driver (dmesg | grep -i -e nvrm -e xid)"
        for bus_id in (report["lost"] if report["gpus"] else ())
    ]


def slot_names(slots: Iterable[Mapping[str, Any]], host: str) -> list[str]:
    """Return `host:n` of each slot."""
    return [f"{host}:{slot['slot']}" for slot in slots]


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"gpu_slots": gpu_slots, "gpu_troubles": ill, "slot_names": slot_names}
