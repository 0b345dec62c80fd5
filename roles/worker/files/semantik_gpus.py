#!/usr/bin/python3
"""What this host has of GPUs, and where each slot's device nodes are.

    semantik-gpus report      print it as JSON; without an argument too, as Ansible's local fact
    semantik-gpus link N      point /dev/semantik/N/ at the nodes of slot N's GPU, whatever their numbers are

The driver numbers device nodes anew at each boot, and not always in the order of the bus; a GPU's UUID stays.
Slots are therefore bound to UUIDs (/etc/semantik/gpu-N.env), and units to the links that this makes. Needs
nothing but Python: it runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Seconds for nvidia-smi, which loads the driver's state anew where no persistence daemon keeps it.
PATIENCE = 60
PCI = Path("/sys/bus/pci/devices")
NODES = Path("/sys/devices/system/node")
CAPABILITIES = Path("/proc/driver/nvidia/capabilities")
#: What the kernel module itself says of each card, also where nvidia-smi gives up because of one of them.
INFORMATION = Path("/proc/driver/nvidia/gpus")
CONFIG = Path("/etc/semantik")
DEV = Path("/dev")
NVIDIA = "0x10de"
#: PCI classes: display controllers (VGA, 3D), and other bridges.
GPU_CLASSES, SWITCH_CLASS = ("0x0300", "0x0302"), "0x0680"
#: Device ids of NVSwitches of the Volta, Ampere and Hopper generations (NVIDIA's open kernel modules,
#: nvswitch/kernel/nvswitch.c); NVIDIA made other bridges too.
SWITCHES = (
    "0x1ac2",
    "0x1ae8",
    *(f"0x{number:04x}" for number in (*range(0x1AF0, 0x1B00), *range(0x22A0, 0x22B0))),
)
#: The switches of Blackwell's generation are no PCI devices: a network card manages them, says its VPD.
CARDS, MANAGER = Path("/sys/class/infiniband"), b"SW_MNG"
#: What the driver answers where a card has no such thing.
ABSENT = ("", "N/A", "[N/A]", "0", "No", "None")
#: Paths in `nvidia-smi -q -x`, and what is wrong where they say anything but ABSENT.
TROUBLES = {
    "remapped_rows/remapped_row_failure": "a memory row could not be remapped: replace the card",
    "remapped_rows/remapped_row_pending": "memory rows wait to be remapped: reset the GPU or reboot",
    "retired_pages/pending_retirement": "memory pages wait to be retired: reboot",
    "retired_pages/pending_blacklist": "memory pages wait to be retired: reboot",
}


class DriverError(Exception):
    """The driver does not answer; the message is its own."""


def nvidia_smi(*arguments: str) -> str:
    """Return what nvidia-smi prints. Raises DriverError."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise DriverError(f"nvidia-smi does not answer within {PATIENCE} s") from error
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())[-500:]
        raise DriverError(f"nvidia-smi {' '.join(arguments)} ended with status {done.returncode}: {said}")
    return done.stdout


def bus_key(bus_id: str) -> list[int]:
    """Return what a bus id sorts by: domain, bus, device, function as numbers."""
    return [int(part, 16) for part in re.split(r"[:.]", bus_id)]


def kernel_name(bus_id: str) -> str:
    """Return a device's name in /sys: nvidia-smi writes the domain with 8 digits, the kernel with 4."""
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def on_the_bus(pci: Path) -> Iterator[tuple[str, str, str]]:
    """Yield name, class and device id of NVIDIA's devices, whether or not a driver knows them."""
    for path in sorted(pci.iterdir()) if pci.is_dir() else ():
        try:
            if (path / "vendor").read_text(encoding="ascii").strip() != NVIDIA:
                continue
            kind = (path / "class").read_text(encoding="ascii").strip()
            device = (path / "device").read_text(encoding="ascii").strip()
        except OSError:  # it left the bus in this moment
            continue
        yield path.name, kind[:6], device


def manages_switches(cards: Path) -> bool:
    """Return whether a network card of this host manages NVLink switches of Blackwell's generation."""
    for path in cards.glob("*/device/vpd"):
        try:
            if MANAGER in path.read_bytes():
                return True
        except OSError:  # some cards refuse
            continue
    return False


def cpus_of(node: int, nodes: Path) -> str:
    """Return the CPUs of a NUMA node as the kernel lists them ("0-15,32-47"); "" where it knows no node."""
    path = nodes / f"node{node}" / "cpulist"
    return path.read_text(encoding="ascii").strip() if node >= 0 and path.is_file() else ""


def numa_node(bus_id: str, pci: Path) -> int:
    """Return the NUMA node of a PCI device, -1 where the kernel knows none."""
    path = pci / kernel_name(bus_id) / "numa_node"
    return int(path.read_text(encoding="ascii")) if path.is_file() else -1


def required(element: ElementTree.Element, path: str, of: str) -> str:
    """Return an element's text. Raises DriverError where nvidia-smi did not report it."""
    value = (element.findtext(path) or "").strip()
    if not value or value == "N/A":
        raise DriverError(f"nvidia-smi -q -x reports no {path} for GPU {of}: is its driver whole?")
    return value


def number(element: ElementTree.Element, path: str, of: str) -> int:
    """Return the number that an element begins with. Raises DriverError where there is none."""
    text = required(element, path, of)
    match = re.match(r"\d+", text)
    if not match:
        raise DriverError(f"nvidia-smi -q -x reports {text!r} as {path} of GPU {of}: is its driver whole?")
    return int(match[0])


def mib(text: str) -> int:
    """Return the number in "23034 MiB"."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def capability(minor: int, path: str, capabilities: Path) -> int:
    """Return the minor of /dev/nvidia-caps/nvidia-capN that gives access to part of a GPU, -1 if unknown."""
    file = capabilities / f"gpu{minor}" / "mig" / path / "access"
    match = (
        re.search(r"DeviceFileMinor:\s*(\d+)", file.read_text(encoding="ascii")) if file.is_file() else None
    )
    return int(match[1]) if match else -1


def mig_devices(
    gpu: ElementTree.Element, listed: list[tuple[str, str]], minor: int, capabilities: Path
) -> list[dict[str, Any]]:
    """Return the MIG devices of a GPU; `listed` has name and UUID of each as `nvidia-smi -L` tells them."""
    found = []
    for device, (profile, uuid) in zip(gpu.findall("mig_devices/mig_device"), listed, strict=False):
        instance = int(device.findtext("gpu_instance_id") or 0)
        compute = int(device.findtext("compute_instance_id") or 0)
        found.append(
            {
                "uuid": uuid,
                "profile": profile,
                "memory_mib": mib(device.findtext("fb_memory_usage/total") or ""),
                "gi": capability(minor, f"gi{instance}", capabilities),
                "ci": capability(minor, f"gi{instance}/ci{compute}", capabilities),
            }
        )
    return found


def listed_mig(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return profile and UUID of the MIG devices of each GPU's UUID, from `nvidia-smi -L`."""
    found: dict[str, list[tuple[str, str]]] = {}
    gpu = ""
    for line in text.splitlines():
        if match := re.match(r"GPU \d+:.*\(UUID: (\S+)\)", line):
            gpu = match[1]
        elif match := re.match(r"\s+MIG (\S+)\s+Device\s+\d+:\s+\(UUID: (\S+)\)", line):
            found.setdefault(gpu, []).append((match[1], match[2]))
    return found


def computes() -> dict[str, str]:
    """Return bus id -> compute capability; empty where the driver does not say it, as before 510."""
    try:
        # Asked alone: one field that a driver does not know fails the whole question.
        listed = nvidia_smi("--query-gpu=pci.bus_id,compute_cap", "--format=csv,noheader")
    except DriverError:
        return {}
    rows = (line.partition(",") for line in listed.splitlines())
    return {bus_id.strip().lower(): value.strip() for bus_id, _, value in rows}


def troubles(gpu: ElementTree.Element) -> list[str]:
    """Return what is wrong with a GPU by the driver's own account."""
    found = [words for path, words in TROUBLES.items() if (gpu.findtext(path) or "").strip() not in ABSENT]
    action = (gpu.findtext("gpu_recovery_action") or "").strip()
    return found + ([f"the driver asks for: {action}"] if action not in ABSENT else [])


def parse(
    xml: str,
    listing: str,
    *,
    computing: Mapping[str, str] | None = None,
    pci: Path = PCI,
    nodes: Path = NODES,
    capabilities: Path = CAPABILITIES,
) -> dict[str, Any]:
    """Return the driver and its GPUs in the order of the bus, from `nvidia-smi -q -x` and `-L`.

    `computing`: bus id -> compute capability. Raises DriverError.
    """
    try:
        log = ElementTree.fromstring(xml)  # noqa: S314 (the driver's own tool wrote it)
    except ElementTree.ParseError as error:
        raise DriverError(f"nvidia-smi -q -x: {error}: {' '.join(xml.split())[:300]}") from error
    mig = listed_mig(listing)
    gpus, broken = [], []
    for gpu in log.iter("gpu"):
        bus_id = (gpu.get("id") or "").lower()
        try:
            uuid, minor = required(gpu, "uuid", bus_id), number(gpu, "minor_number", bus_id)
            name = required(gpu, "product_name", bus_id)
            memory = number(gpu, "fb_memory_usage/total", bus_id)
        except DriverError as error:
            broken.append(str(error))  # the others can be worked with
            continue
        node = numa_node(bus_id, pci)
        cut = (gpu.findtext("mig_mode/current_mig") or "").strip() == "Enabled"
        gpus.append(
            {
                "uuid": uuid,
                "minor": minor,
                "bus_id": bus_id,
                "name": name,
                "capability": (computing or {}).get(bus_id, ""),
                "memory_mib": memory,
                "numa_node": node,
                "cpus": cpus_of(node, nodes),
                "mig_enabled": cut,
                "mig": mig_devices(gpu, mig.get(uuid, []), minor, capabilities) if cut else [],
                "troubles": troubles(gpu),
            }
        )
    return {
        "driver_version": (log.findtext("driver_version") or "").strip(),
        "cuda_version": (log.findtext("cuda_version") or "").strip(),
        "gpus": sorted(gpus, key=lambda gpu: bus_key(gpu["bus_id"])),
        "error": "; ".join(broken),
    }


def known_to_the_module(information: Path) -> dict[str, int]:
    """Return UUID -> device minor of each card that the kernel module drives."""
    found = {}
    for path in sorted(information.glob("*/information")):
        try:
            fields = dict(line.partition(":")[::2] for line in path.read_text(encoding="utf-8").splitlines())
            found[fields["GPU UUID"].strip()] = int(fields["Device Minor"])
        except (OSError, KeyError, ValueError):  # a card that is going, or not started yet
            continue
    return found


def bound_slots(config: Path) -> dict[str, str]:
    """Return slot -> UUID as the slots' settings have it; "" for a slot without a GPU."""
    slots = {}
    for path in sorted(config.glob("gpu-*.env")):
        number = re.fullmatch(r"gpu-(\d+)\.env", path.name)
        bound = re.search(r"(?m)^CUDA_VISIBLE_DEVICES=(.*)$", path.read_text(encoding="utf-8"))
        if number and bound:
            slots[number[1]] = bound[1].strip()
    return slots


def report(pci: Path = PCI, config: Path = CONFIG, cards: Path = CARDS) -> dict[str, Any]:
    """Return all of it. What the driver does not answer is `error`, beside what the bus alone says."""
    bus = list(on_the_bus(pci))
    found: dict[str, Any] = {"driver_version": "", "cuda_version": "", "gpus": [], "error": ""}
    if shutil.which("nvidia-smi"):
        try:
            found |= parse(nvidia_smi("-q", "-x"), nvidia_smi("-L"), computing=computes(), pci=pci)
        except DriverError as error:
            found["error"] = str(error)
    shown = {kernel_name(gpu["bus_id"]) for gpu in found["gpus"]}
    return {
        **found,
        "pci": [{"bus_id": name, "device": device} for name, kind, device in bus if kind in GPU_CLASSES],
        # On the bus, and not among the driver's: fallen off, or of another driver.
        "lost": [name for name, kind, _ in bus if kind in GPU_CLASSES and name not in shown],
        "nvswitches": [name for name, kind, device in bus if kind == SWITCH_CLASS and device in SWITCHES],
        "nvlink5": manages_switches(cards),
        "slots": bound_slots(config),
    }


def targets(slot: str, seen: dict[str, Any], information: Path = INFORMATION) -> dict[str, str]:
    """Return link name -> device node of a slot; nothing for one without a GPU. Raises DriverError."""
    uuid = seen["slots"].get(slot)
    if uuid is None:
        raise DriverError(f"there is no slot {slot}: {CONFIG}/gpu-{slot}.env names its GPU")
    if not uuid:
        return {}
    for gpu in seen["gpus"]:
        node = {"gpu": f"nvidia{gpu['minor']}"}
        if gpu["uuid"] == uuid:
            return node
        for part in gpu["mig"]:
            if part["uuid"] == uuid:
                caps = {
                    name: f"nvidia-caps/nvidia-cap{part[name]}" for name in ("gi", "ci") if part[name] >= 0
                }
                return node | caps
    # nvidia-smi may end with an error for the whole host because of one card.
    minor = known_to_the_module(information).get(uuid) if seen["error"] else None
    if minor is not None:
        return {"gpu": f"nvidia{minor}"}
    shown = ", ".join(gpu["uuid"] for gpu in seen["gpus"]) or "none"
    lost = f"; on the bus without a driver: {', '.join(seen['lost'])}" if seen["lost"] else ""
    reason = f" ({seen['error']})" if seen["error"] else ""
    raise DriverError(f"slot {slot}: GPU {uuid} is not there{reason}; the driver shows {shown}{lost}")


def link(slot: str, seen: dict[str, Any], dev: Path = DEV) -> None:
    """Make /dev/semantik/<slot>/ point at the slot's nodes, and at no others. Raises DriverError."""
    folder = dev / "semantik" / slot
    try:
        wanted = targets(slot, seen)
    except DriverError:
        shutil.rmtree(folder, ignore_errors=True)  # a link to what another GPU has now would open that
        raise
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, node in wanted.items():
        (folder / name).symlink_to(os.path.relpath(dev / node, folder))
    if wanted and not (dev / "nvidia-uvm").exists():
        load_unified_memory()


def load_unified_memory() -> None:
    """Load nvidia-uvm and make its nodes, which every CUDA process opens.

    The driver does neither by itself: the first CUDA process has a setuid helper do it, and a worker may gain
    no rights. What goes wrong is said here; without the node the worker says that torch sees no GPU.
    """
    helper = shutil.which("nvidia-modprobe")
    if helper is None:
        print("there is no /dev/nvidia-uvm, and no nvidia-modprobe to make it", file=sys.stderr)
        return
    try:
        done = subprocess.run(
            [helper, "-c", "0", "-u"], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"nvidia-modprobe -c 0 -u: {error}", file=sys.stderr)
        return
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())
        print(f"nvidia-modprobe -c 0 -u ended with status {done.returncode}: {said}", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Do what the command line asks; returns the exit status."""
    if arguments in ([], ["report"]):
        print(json.dumps(report(), indent=2))
        return 0
    if len(arguments) == 2 and arguments[0] == "link" and arguments[1].isdigit():
        try:
            link(arguments[1], report())
        except DriverError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    print((__doc__ or "").strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
