"""The workers as torch sees them: driver, GPUs, and whether they are to compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch_tables import (
    DISTRIBUTION_BRANCHES,
    GENERATIONS,
    Version,
    capability_of_device,
    text,
    version,
)

#: The newest driver of a branch, where the branch alone is known.
NEWEST = 9999
#: The variable that names a driver.
PIN = "nvidia_driver_version"


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, its compute capability (empty when unknown), and whether the driver shows it."""

    name: str
    capability: Version
    shown: bool = True

    def __str__(self) -> str:
        generation = GENERATIONS.get(self.capability, "")
        known = f"{generation} {text(self.capability)}".strip() if self.capability else ""
        return f"{self.name} ({known})" if known else self.name


@dataclass(frozen=True)
class Host:
    """What a worker host has, or will have.

    `planned` says whose word a driver is that is not there yet: the pin's, or that of the distribution
    ("Debian 13"), which is what it had when this was written. Empty: it answers.
    """

    name: str
    machine: str
    driver: str
    gpus: tuple[Gpu, ...]
    device: str = "auto"
    planned: str = ""
    source: str = "cuda_repository"
    system: str = ""

    @classmethod
    def read(cls, name: str, facts: Mapping[str, Any], slots: Sequence[Any]) -> Host:
        """Take the fact `worker_driver` (roles/worker/tasks/compatible.yml) and the slots, if there are any.

        Only the GPUs of slots count.
        """
        seen, system = facts["seen"], facts["system"]
        taken = {slot["bus_id"] for slot in slots if slot.get("bus_id")}
        shown = [
            Gpu(gpu["name"], version(gpu["capability"]))
            for gpu in seen["gpus"]
            if not taken or gpu["bus_id"] in taken
        ]
        lost = [
            Gpu(f"GPU {device['bus_id']}", capability_of_device(device["device"]), shown=False)
            for device in seen["pci"]
            if device["bus_id"] in seen["lost"]
        ]
        driver, planned = seen["driver_version"], ""
        wanted = version(facts["version"])
        if facts["source"] != "none" and wanted and wanted != version(driver)[: len(wanted)]:
            driver, planned = facts["version"], PIN
        elif facts["comes"] and facts["source"] == "distribution" and system in DISTRIBUTION_BRANCHES:
            driver, planned = str(DISTRIBUTION_BRANCHES[system]), system
        gpus = (*shown, *lost)
        return cls(name, facts["machine"], driver, gpus, facts["device"], planned, facts["source"], system)

    @property
    def computes(self) -> tuple[Gpu, ...]:
        """The GPUs that torch has to serve: none where the processor embeds."""
        return () if self.device == "cpu" else tuple(gpu for gpu in self.gpus if gpu.shown or not self.shows)

    @property
    def shows(self) -> bool:
        """Whether the driver shows any GPU."""
        return any(gpu.shown for gpu in self.gpus)

    @property
    def number(self) -> Version:
        """The driver's version to compare, of a planned branch its newest; empty when there is none."""
        found = version(self.driver)
        return found + (NEWEST,) * (3 - len(found)) if found and self.planned else found

    @property
    def expected(self) -> bool:
        """Whether nobody promised the driver: it is what the distribution is known to have."""
        return self.planned not in ("", PIN)

    @property
    def named(self) -> str:
        """The driver as messages name it."""
        whose = self.planned if self.planned == PIN else f"{self.planned}'s"
        return f"driver {self.driver}" + (f" ({whose})" if self.planned else "")

    def way_to(self, driver: Version, written: str) -> str:
        """Say how the host gets a driver; `written` is its version as text."""
        if self.source == "none":
            return f"its driver to {written} or newer"
        short = self.source == "distribution" and DISTRIBUTION_BRANCHES.get(self.system, NEWEST) < driver[0]
        return f"{PIN} to {written} or newer" + (" (nvidia_driver_source: cuda_repository)" if short else "")
