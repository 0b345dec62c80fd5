"""Is a GPU fit to compute? What its driver says of it, judged, and told to whoever asks.

A GPU is `good`, or `resting` (it takes no shard until it has been well for a while), or `condemned` (what it
holds is given back and it takes nothing, until its service is started again).

Sources: NVIDIA's Xid catalog, https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, whose
"immediate action" decides about an Xid; NVIDIA GPU Memory Error Management,
https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/, for rows and pages.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from semantik import notes
from semantik.nvml import UUID, Reading
from semantik.settings import Settings

GOOD, RESTING, CONDEMNED = "good", "resting", "condemned"
#: Seconds without a look, besides the pause between two: the driver hangs, as it may with a GPU that does.
STILL_SECONDS = 60.0

#: Xids after which the catalog wants the GPU reset or its host restarted, and what they are. In addition 74,
#: whose action depends on registers that no event carries, and 94: the error stayed within the process that
#: met it, which has to be started anew, and the uncorrectable error behind it condemns the GPU in any case.
#: All others are left alone: an application's own (13, 31, 43, 45, 68 and 69: restart it), and what is to be
#: ignored. Among these are 92 (many corrected errors) and 63: that a row is to be remapped is told by the
#: pending flag too, which is what is judged; an event that comes again must not condemn a GPU for a flag
#: that an operator has seen and let pass by starting the service.
FATAL_XIDS = {
    46: "the GPU stopped processing",
    48: "a double-bit ECC error",
    62: "its power management unit halted",
    64: "a row or page could not be retired",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    94: "a contained uncorrectable error",
    95: "an uncontained uncorrectable error",
    109: "a context switch timed out",
    110: "a security fault",
    119: "its system processor does not answer",
    120: "an error of its system processor",
    136: "its links could not be trained",
    140: "an unrecovered ECC error",
    143: "it could not be initialized",
    155: "an NVLink error",
    156: "a resource was retired",
    158: "a fatal timeout",
}

#: Bits of nvmlClocksEventReasons: clocks that are held down because of heat or for want of power.
SLOWED = {
    0x40: "thermal slowdown by the hardware",
    0x20: "thermal slowdown by the driver",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Verdict:
    """A state, and why it is not `good`."""

    state: str = GOOD
    reason: str = ""


def judge(reading: Reading, baseline: Reading, xids: Collection[int] = ()) -> Verdict:
    """Judge one look at a GPU by what was there when its worker started, and the Xids that came since.

    Counters and pending flags of the start are let pass: starting the service is how an operator says that
    it is to go on. By NVIDIA's word a pending remap alone would let new work begin. But a row waits for one
    because memory failed there, and gets it by a reset, for which the worker has to let go of the GPU.
    """
    # The cause first: an uncorrectable error sets several of these at once.
    for xid in xids:
        if xid in FATAL_XIDS:
            return Verdict(CONDEMNED, f"Xid {xid}: {FATAL_XIDS[xid]}")
    errors = max(
        _more(reading.uncorrected_volatile, baseline.uncorrected_volatile),
        _more(reading.uncorrected_aggregate, baseline.uncorrected_aggregate),
    )
    if errors:
        return Verdict(CONDEMNED, f"{errors} uncorrectable ECC error{'s' if errors > 1 else ''}")
    if reading.remap_failed:
        return Verdict(CONDEMNED, "a row of its memory could not be remapped")
    if reading.remap_pending and not baseline.remap_pending:
        return Verdict(CONDEMNED, "a row of its memory waits for a reset to be remapped")
    if reading.retirement_pending and not baseline.retirement_pending:
        return Verdict(CONDEMNED, "a page of its memory waits for a reset to be retired")
    slowed = [what for bit, what in SLOWED.items() if (reading.clock_reasons or 0) & bit]
    if slowed:
        degrees = "" if reading.temperature is None else f" at {reading.temperature} degrees"
        return Verdict(RESTING, f"{' and '.join(slowed)}{degrees}")
    return Verdict()


def _more(now: int | None, before: int | None) -> int:
    return 0 if now is None or before is None else max(0, now - before)


class Condition:
    """A GPU's state over time: trouble counts at once, its end after a rest, a condemned GPU stays so.

    One that is too hot cools down within seconds of rest, and without a longer one would be too hot again.
    """

    def __init__(self, rest_seconds: float) -> None:
        self._rest_seconds = rest_seconds
        self._troubled_at = 0.0
        self.verdict = Verdict()

    def take(self, verdict: Verdict, now: float) -> Verdict:
        """Take one look's verdict at `now` (seconds, any clock that only goes forward); return the state."""
        if self.verdict.state != CONDEMNED:
            if verdict.state != GOOD:
                self.verdict, self._troubled_at = verdict, now
            elif now - self._troubled_at >= self._rest_seconds:
                self.verdict = verdict
        return self.verdict


# --- what the parent of a worker notes, for its child and for Prometheus ---


@dataclass(frozen=True)
class Note:
    """A GPU's state, as the parent of its worker has noted it in the unit's runtime directory."""

    state: str
    reason: str
    parent: int  # the process that noted it: a directory may outlive a service
    at: float  # CLOCK_MONOTONIC, seconds
    ecc_errors: int | None = None  # uncorrectable, since the driver's start
    sm_mhz: int | None = None
    temperature: int | None = None  # degrees Celsius


def watched(settings: Settings) -> bool:
    """Return whether this slot has a GPU by its UUID."""
    return UUID.fullmatch(settings.cuda_visible_devices) is not None


def _note(settings: Settings) -> Path:
    return notes.directory(settings) / "health.json"


def _metrics(settings: Settings) -> Path:
    return notes.directory(settings) / "gpu.prom"


def write(settings: Settings, verdict: Verdict, reading: Reading | None) -> None:
    """Note the state for the child, and the metrics for Prometheus. `reading`: None where there is none."""
    shown = reading or Reading()
    note = Note(
        verdict.state, verdict.reason, os.getpid(), time.monotonic(),
        shown.uncorrected_volatile, shown.sm_mhz, shown.temperature,
    )  # fmt: skip
    _replace(_note(settings), json.dumps(asdict(note)))
    # For everybody, in spite of the unit's UMask=: node_exporter has a user of its own.
    _replace(_metrics(settings), metrics(settings, verdict, shown), mode=0o644)


def _replace(path: Path, text: str, mode: int = 0o600) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(mode)
    draft.replace(path)  # whole or not at all, whenever the reader comes


def forget(settings: Settings) -> None:
    """Remove what an earlier service has noted."""
    _note(settings).unlink(missing_ok=True)
    _metrics(settings).unlink(missing_ok=True)


def read(settings: Settings) -> Note | None:
    """In the child: return what this worker's parent has noted, None where it watches no GPU."""
    if not watched(settings):
        return None
    try:
        note = Note(**json.loads(_note(settings).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if note.parent != os.getppid():
        return None
    aged = age(settings, Verdict(note.state, note.reason), time.monotonic() - note.at)
    return replace(note, state=aged.state, reason=aged.reason)


def age(settings: Settings, verdict: Verdict, seconds: float) -> Verdict:
    """Return a verdict as it stands `seconds` later, where no look has ended since."""
    if verdict.state != GOOD or seconds < STILL_SECONDS + settings.health_seconds:
        return verdict
    return Verdict(RESTING, f"the driver has not answered for {seconds:.0f} s")


def metrics(settings: Settings, verdict: Verdict, reading: Reading) -> str:
    """Return the state in Prometheus' text format; what the card does not tell is left out."""
    names = {"host": settings.host, "slot": settings.slot, "uuid": settings.cuda_visible_devices}
    labels = ",".join(f'{name}="{_label(value)}"' for name, value in names.items())
    lines = []
    for name, kind, meaning, value in (
        ("healthy", "gauge", "1 while its worker takes shards, 0 while it rests or is condemned",
         int(verdict.state == GOOD)),
        ("temperature_celsius", "gauge", "Temperature of the GPU", reading.temperature),
        ("uncorrectable_ecc_errors_total", "counter", "ECC errors not corrected since the driver's start",
         reading.uncorrected_volatile),
        ("clocks_event_reasons", "gauge", "What holds the clocks down: bits of nvmlClocksEventReasons",
         reading.clock_reasons),
    ):  # fmt: skip
        if value is not None:
            lines += [
                f"# HELP semantik_gpu_{name} {meaning}.",
                f"# TYPE semantik_gpu_{name} {kind}",
                f"semantik_gpu_{name}{{{labels}}} {value}",
            ]
    return "\n".join(lines) + "\n"


def _label(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
