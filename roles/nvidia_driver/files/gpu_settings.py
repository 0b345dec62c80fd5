#!/usr/bin/python3
"""Bring every GPU of this host to the settings that the inventory declares; at each boot, as few stay.

    semantik-gpu-settings FILE [--check]

FILE is JSON, or the JSON itself: `ecc`, `mig` (keep, on, off), `mig_profiles` (list), `compute_mode` (keep,
default, exclusive_process, prohibited), `power_limit_watts` (0: keep). Prints JSON: `changed`, `done` (what
was set, or with --check would be), `pending` (what a reboot settles) and `problems`; status 1 where there are
any.
Needs nothing but Python.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATIENCE = 120
MODES = {"default": "Default", "exclusive_process": "Exclusive_Process", "prohibited": "Prohibited"}
SWITCH = {"on": ("Enabled", "1"), "off": ("Disabled", "0")}
KEEP = {"ecc": "keep", "mig": "keep", "mig_profiles": [], "compute_mode": "keep", "power_limit_watts": 0}
#: Watts between a limit that was asked for and what the card makes of it.
NEAR = 1.0


class SettingError(Exception):
    """A GPU cannot be set so; the message says which and why."""


def nvidia_smi(*arguments: str) -> str:
    """Return what nvidia-smi prints. Raises SettingError with its words."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingError(f"nvidia-smi {' '.join(arguments)}: {error}") from error
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())[-400:]
        raise SettingError(f"nvidia-smi {' '.join(arguments)} ended with status {done.returncode}: {said}")
    return done.stdout


def watts(gpu: ElementTree.Element, name: str) -> float | None:
    """Return a power limit; None where the card has none. Drivers before 530 name the element otherwise."""
    for path in (f"gpu_power_readings/{name}", f"power_readings/{name}"):
        match = re.match(r"[\d.]+", (gpu.findtext(path) or "").strip())
        if match:
            return float(match[0])
    return None


def offered(listing: str) -> dict[str, int]:
    """Return how many MIG devices of each profile an empty GPU has room for, from `nvidia-smi mig -lgip`."""
    rows = re.finditer(r"\bMIG (\d\S*)\s+\d+\s+\d+/(\d+)\s", listing)
    return {row[1]: int(row[2]) for row in rows}


def layout(listing: str) -> dict[str, list[str]]:
    """Return the profiles of the MIG devices of each GPU's UUID, from `nvidia-smi -L`."""
    found: dict[str, list[str]] = {}
    gpu = ""
    for line in listing.splitlines():
        if match := re.match(r"GPU \d+:.*\(UUID: (\S+)\)", line):
            gpu = match[1]
        elif match := re.match(r"\s+MIG (\S+)\s+Device", line):
            found.setdefault(gpu, []).append(match[1])
    return found


class Gpu:
    """One GPU: what it is set to, and the commands that set it otherwise."""

    def __init__(self, seen: ElementTree.Element, profiles: Mapping[str, list[str]]) -> None:
        self.seen = seen
        self.bus_id = seen.get("id") or ""
        self.profiles = sorted(profiles.get(self.text("uuid"), []))

    def text(self, path: str) -> str:
        """Return an element's text."""
        return (self.seen.findtext(path) or "").strip()

    def ecc(self, wanted: str) -> list[list[str]]:
        """Return commands; what they set holds from the next boot on."""
        if wanted == "keep":
            return []
        state, number = SWITCH[wanted]
        if self.text("ecc_mode/pending_ecc") in ("", "N/A"):
            if wanted == "off":
                return []
            raise SettingError(f"GPU {self.bus_id} has no ECC to switch {wanted}")
        return [] if self.text("ecc_mode/pending_ecc") == state else [["-i", self.bus_id, "-e", number]]

    def power(self, wanted: float) -> list[list[str]]:
        """Return commands."""
        if not wanted:
            return []
        now = watts(self.seen, "current_power_limit") or watts(self.seen, "power_limit")
        least, most = watts(self.seen, "min_power_limit"), watts(self.seen, "max_power_limit")
        if now is None or least is None or most is None:
            raise SettingError(f"GPU {self.bus_id} has no power limit to set")
        if not least <= wanted <= most:
            raise SettingError(
                f"GPU {self.bus_id} takes power limits from {least:g} to {most:g} W, not {wanted:g}"
            )
        return [] if abs(now - wanted) < NEAR else [["-i", self.bus_id, "-pl", f"{wanted:g}"]]

    def compute(self, wanted: str) -> list[list[str]]:
        """Return commands."""
        if wanted == "keep" or self.text("compute_mode") == MODES[wanted]:
            return []
        return [["-i", self.bus_id, "-c", MODES[wanted].upper()]]

    def mig_mode(self, wanted: str) -> list[list[str]]:
        """Return commands."""
        now = self.text("mig_mode/pending_mig") or "N/A"
        if wanted == "keep" or (wanted == "off" and now == "N/A"):
            return []
        if now == "N/A":
            raise SettingError(f"GPU {self.bus_id} ({self.text('product_name')}) has no MIG mode")
        state, number = SWITCH[wanted]
        return [] if now == state else [["-i", self.bus_id, "-mig", number]]

    def mig_layout(self, mode: str, wanted: list[str]) -> list[list[str]]:
        """Return commands, once the mode is on."""
        on = self.text("mig_mode/current_mig") == "Enabled"
        if mode != "on" or not wanted or not on or self.profiles == sorted(wanted):
            return []
        self.check_room(wanted)
        return [*(self.mig_cleared() if self.profiles else []), self.mig_made(wanted)]

    def mig_cleared(self) -> list[list[str]]:
        """Return the commands that take all MIG devices away."""
        return [["mig", "-i", self.bus_id, "-dci"], ["mig", "-i", self.bus_id, "-dgi"]]

    def mig_made(self, profiles: list[str]) -> list[str]:
        """Return the command that makes MIG devices of these profiles."""
        return ["mig", "-i", self.bus_id, "-cgi", ",".join(profiles), "-C"]

    def check_room(self, wanted: list[str]) -> None:
        """Raise SettingError for a profile that the GPU does not have, or not so often.

        Whether all fit beside each other only their making shows.
        """
        room = offered(nvidia_smi("mig", "-i", self.bus_id, "-lgip"))
        known = ", ".join(f"{name} (up to {most})" for name, most in room.items())
        for profile in dict.fromkeys(wanted if room else []):
            count = wanted.count(profile)
            if count > room.get(profile, 0):
                raise SettingError(
                    f"GPU {self.bus_id} has no room for {count} x {profile}: its profiles are {known}"
                )

    def pending(self) -> list[str]:
        """Say what waits for a reboot."""
        found = []
        for name, path, more in (
            ("ECC", "ecc_mode/{}_ecc", ""),
            ("MIG", "mig_mode/{}_mig", "; run site.yml after it, since its slots will be others"),
        ):
            now, then = self.text(path.format("current")), self.text(path.format("pending"))
            if now != then:
                change = f"{name} is {now or 'N/A'}, and {then or 'N/A'} from the next boot on"
                found.append(f"GPU {self.bus_id}: {change}{more}")
        return found


def gpus() -> list[Gpu]:
    """Return the host's GPUs as they are now. Raises SettingError."""
    xml, listing = nvidia_smi("-q", "-x"), nvidia_smi("-L")
    try:
        log = ElementTree.fromstring(xml)  # noqa: S314 (the driver's own tool wrote it)
    except ElementTree.ParseError as error:
        raise SettingError(f"nvidia-smi -q -x: {error}") from error
    profiles = layout(listing)
    return [Gpu(seen, profiles) for seen in log.iter("gpu")]


def restore(gpu: Gpu) -> str:
    """Make the MIG devices of before where they are gone; returns what became of it, "" for nothing to do."""
    now = next((one for one in gpus() if one.bus_id == gpu.bus_id), None)
    if now is None or now.profiles == gpu.profiles:
        return ""
    try:
        for command in now.mig_cleared() if now.profiles else []:
            nvidia_smi(*command)
        if gpu.profiles:
            nvidia_smi(*gpu.mig_made(gpu.profiles))
    except SettingError as error:
        return f"its MIG devices ({', '.join(gpu.profiles) or 'none'}) could not be made again: {error}"
    return f"its MIG devices are those of before again ({', '.join(gpu.profiles) or 'none'})"


def apply(wanted: Mapping[str, Any], check: bool) -> dict[str, Any]:
    """Set what differs, or with `check` only say so. Everything is checked before anything is set."""
    wanted = {**KEEP, **wanted}
    done: list[str] = []
    problems: list[str] = []

    def run(commands: list[list[str]]) -> None:
        for command in commands:
            if not check:
                nvidia_smi(*command)
            done.append(" ".join(["nvidia-smi", *command]))

    def cut(gpu: Gpu) -> None:
        try:
            run(gpu.mig_layout(wanted["mig"], wanted["mig_profiles"]))
        except SettingError as error:
            # Some of the new ones may be there, since nvidia-smi makes one after the other.
            again = restore(gpu)
            raise SettingError(f"{error}; {again}" if again else str(error)) from error

    plans: list[list[list[str]]] = []
    now = gpus()
    for gpu in now:
        try:
            commands = gpu.mig_mode(wanted["mig"]) + gpu.ecc(wanted["ecc"])
            plans.append(
                commands + gpu.power(wanted["power_limit_watts"]) + gpu.compute(wanted["compute_mode"])
            )
            gpu.mig_layout(wanted["mig"], wanted["mig_profiles"])  # asked again where the mode is new
        except SettingError as error:
            problems.append(str(error))
    if problems:
        return {"changed": False, "done": [], "pending": [], "problems": problems}
    try:
        for commands in plans:
            run(commands)
        # The layout can be made once the mode is on, which some cards do at once and some at the next boot.
        for gpu in gpus() if done and not check else now:
            cut(gpu)
    except SettingError as error:
        problems.append(str(error))
    pending = [line for gpu in (gpus() if done and not check else now) for line in gpu.pending()]
    return {"changed": bool(done), "done": done, "pending": pending, "problems": problems}


def main(arguments: list[str]) -> int:
    """Do what the command line asks; returns the exit status."""
    declared = [word for word in arguments if word != "--check"]
    if len(declared) != 1 or declared[0].startswith("-"):
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        text = declared[0] if declared[0].startswith("{") else Path(declared[0]).read_text(encoding="utf-8")
        answer = apply(json.loads(text), "--check" in arguments)
    except (OSError, ValueError, SettingError) as error:
        answer = {"changed": False, "done": [], "pending": [], "problems": [str(error)]}
    print(json.dumps(answer, indent=2))
    return 1 if answer["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
