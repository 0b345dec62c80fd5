"""A slot: one GPU (or the CPU) of one host, as its worker tells the database."""

from __future__ import annotations

from dataclasses import dataclass

from semantik import health
from semantik.database import Connection, query
from semantik.pulse import Pulse
from semantik.settings import Settings

#: Weight of the newest shard in the running mean of a slot's speed.
_NEW = 0.3
#: Shards below this many seconds say more about start-up than about speed.
_SHORTEST = 1.0


@dataclass
class Slot:
    """This process's slot, and what it has measured."""

    settings: Settings
    pulse: Pulse
    device: str = ""
    model: str = ""
    model_revision: str = ""
    ready: bool = False
    busy: bool = False
    ended: bool = False
    bytes_per_second: float | None = None  # of source documents
    tokens_per_second: float | None = None

    @property
    def state(self) -> str:
        """One of slots.state."""
        return self._state(self.trouble)

    @property
    def trouble(self) -> health.Verdict:
        """What the parent says of the slot's GPU."""
        note = health.read(self.settings)
        return health.Verdict() if note is None else health.Verdict(note.state, note.reason)

    def _state(self, trouble: health.Verdict) -> str:
        if self.ended:
            return "stopped"
        if self.pulse.draining:
            return "draining"
        if trouble.state == health.CONDEMNED:
            return trouble.state  # a child that could not be started anew on such a GPU is never ready
        if not self.ready:
            return "starting"
        if trouble.state != health.GOOD:
            return trouble.state
        return "busy" if self.busy else "idle"

    def measured(self, source_bytes: int, tokens: int, seconds: float) -> None:
        """Take a finished shard into the running means."""
        if seconds < _SHORTEST or not tokens:
            return
        self.bytes_per_second = _mean(self.bytes_per_second, source_bytes / seconds)
        self.tokens_per_second = _mean(self.tokens_per_second, tokens / seconds)

    def beat(self, connection: Connection) -> None:
        """Write the slot's row."""
        trouble = self.trouble
        connection.execute(
            query("slots.beat"),
            {
                "slot": self.settings.slot,
                "state": self._state(trouble),
                "processes": self.settings.concurrency,
                "trouble": trouble.reason or None,
                "device": self.device or None,
                "gpu_uuid": self.settings.cuda_visible_devices or None,
                "model": self.model or None,
                "model_revision": self.model_revision or None,
                "release": self.settings.release or None,
                "bytes_per_second": self.bytes_per_second,
                "tokens_per_second": self.tokens_per_second,
            },
        )


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - _NEW) * old + _NEW * new


def heartbeat(connection: Connection, name: str, host: str) -> None:
    """Write the sign of life of the planner or the scheduler."""
    connection.execute(query("slots.heartbeat"), {"name": name, "host": host})
