"""The one part that is not real: an embedding whose rows say which attempt wrote them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semantik.exceptions import DeviceFull
from semantik.items import EngineStats, Finished, Row, Source, Stopped
from semantik.notes import Note

from .actors import Actor, current

REVISION = "1" * 64
DIM = 3


def rows_of(content: str) -> list[str]:
    """The texts of a document's chunks: one to three of them, by its content alone."""
    return [f"{content} {at}" for at in range(1 + len(content) % 3)]


class ToyEngine:
    """Stands in for `semantik.engine.Engine`. Content decides: `bad` and `overflow` fail, `poison` kills."""

    def __init__(self, model: ToyModel, settings: Any, **_: Any) -> None:
        self.stats = EngineStats()

    def run(self, sources: Iterable[Source], should_stop: Callable[[], bool]) -> Iterator[Row | Finished]:
        actor = current()
        for source in sources:
            self.stats._batches = [frozenset({source.key})]
            if should_stop():
                raise Stopped("told to")
            actor.gate("embed")
            self._fail(actor)
            actor.facts.setdefault("tried", []).append(source.key)
            yield from self._document(actor, source)

    def _fail(self, actor: Actor) -> None:
        fault, actor.fault = actor.fault, ""
        if fault == "dies":
            actor.die("signal 11 (SIGSEGV)")
        if fault == "full":
            raise DeviceFull("no memory for one text")
        if fault == "error":
            raise RuntimeError("unforeseen")

    def _document(self, actor: Actor, source: Source) -> Iterator[Row | Finished]:
        try:
            content = Path(source.uri).read_text(encoding="utf-8")
        except FileNotFoundError:
            yield Finished(source.key, "removed")
            return
        if "poison" in content:
            actor.facts["poisoned"] = source.key
            actor.die("signal 11 (SIGSEGV)")
        content_hash = hashlib.sha256(content.encode()).digest()
        if "bad" in content:
            yield Finished(source.key, "failed", error="cannot be parsed", content_hash=content_hash)
            return
        if source.known_hash == content_hash:
            yield Finished(source.key, "skipped", content_hash=content_hash)
            return
        held = actor.facts["lease"].claim
        texts = rows_of(content)
        for ordinal, text in enumerate(texts):
            place = f"{held.shard}:{held.fence}"  # which commit the row is of
            yield Row(source.key, ordinal, text, place, 2, np.full(DIM, 0.5, dtype=np.float16))
        if "overflow" in content:  # found out behind its rows, which are then nobody's
            yield Finished(source.key, "failed", error="a vector is not finite")
            return
        yield Finished(
            source.key, "embedded", content_hash=content_hash, chunks=len(texts), tokens=2 * len(texts)
        )


@dataclass
class ToyModel:
    """What the runner asks its model."""

    revision: str = REVISION
    name: str = "toy"
    device: str = "cpu"


@dataclass
class Notes:
    """Stands in for `semantik.notes`, and for the process ids in them: one directory per boot of a slot."""

    kept: dict[tuple[int, int], Note] = field(default_factory=dict)

    def write(
        self, settings: Any, shard: int, fence: int, documents: Iterable[int] = (), *, job: str | None = None
    ) -> None:
        actor = current()
        note = Note(shard, fence, actor.number, actor.facts["parent"], tuple(documents), job)
        self.kept[actor.facts["run"], shard] = note

    def read(self, settings: Any, shard: int) -> Note | None:
        return self.kept.get((current().facts["run"], shard))

    def remove(self, settings: Any, shard: int) -> None:
        if not current().killed:
            self.kept.pop((current().facts["run"], shard), None)

    def alive(self, pid: int) -> bool:
        return any(actor.number == pid for actor in current().stage.actors if not actor.killed)


class ToyProcess:
    """Stands in for `os` in the runner: an actor is a process."""

    @staticmethod
    def getpid() -> int:
        return current().number

    @staticmethod
    def getppid() -> int:
        parent: int = current().facts["parent"]
        return parent


class ToyKeeper:
    """Holds an actor's lease; the test renews it, at any time, also when the holder froze or lost it."""

    def hold(self, lease: Any) -> None:
        current().facts["lease"] = lease
        current().facts["kept"] = lease

    def release(self) -> None:
        current().facts.pop("kept", None)
