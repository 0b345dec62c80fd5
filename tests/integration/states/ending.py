"""How an example ends: honest processes finish everything, and the outcome is compared with the files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .actors import Violation
from .parts import COLLECTIONS, FINAL, PLANNERS, SLOTS
from .statements import must
from .toy import rows_of

if TYPE_CHECKING:
    from .world import World


class Ending:
    """The end of an example in a World."""

    def build(self: World, collection: str, *, over: bool = False) -> None:
        """Let the collection's index be under construction, or no longer."""
        key = self.keys[collection]
        self.monitor.execute(
            "UPDATE collections SET index_state = %s WHERE id = %s", ("none" if over else "building", key)
        )
        self.indexing = self.indexing - {key} if over else self.indexing | {key}

    def idle(self: World, queue: str) -> list[str]:
        """Names of the slots or planners that take a message of `queue` now."""
        names = SLOTS if queue == "embed" else PLANNERS
        return [name for name in names if self.places[name].child is None]

    def pump(self: World) -> None:
        """Let every message be taken and done by whoever is free, and every death be seen."""
        for name in (*SLOTS, *PLANNERS):
            if (parent := self.record_crash(name)) is not None:
                self.run(parent)
        waiting, self.messages[:] = list(self.messages), []
        for message in waiting:
            if not (free := self.idle(message.queue)):
                self.messages.append(message)
                continue
            self.run(self.deliver(message, free[0]))
            if (parent := self.record_crash(free[0])) is not None:
                self.run(parent)

    def drain(self: World, *, turns: int = 40) -> None:
        """Let honest processes finish everything: those that are frozen stay so, and their leases run out."""
        self.redis_away = False
        self.indexing.clear()
        self.monitor.execute("UPDATE collections SET index_state = 'none'")
        for slot in SLOTS:
            self.beat(slot, "idle")
            if self.places[slot].child is not None:
                self.restart(slot, power=True)
        for node in PLANNERS:
            if self.places[node].child is not None:
                self.restart(node, power=True)
        if self.scheduler is not None and self.scheduler.state != "ended":
            self.kill(self.scheduler)
        for job in self.rules.before.jobs.values():
            if job.paused and job.state not in FINAL:
                self.run(self.resume(job.id))
        for _ in range(turns):
            self.age()
            self.expire()
            self.end_idle()
            self.run(self.turn())
            self.pump()
            if not any(job.state not in FINAL for job in self.rules.before.jobs.values()):
                return
        raise Violation(f"these jobs never end: {self.rules.before}")

    def end_idle(self: World) -> None:
        """Let the server's time-out end sessions that froze between two statements of a transaction."""
        for actor in self.stage.actors:
            if actor.state == "parked" and actor.pid and actor.at != "embed":
                self.monitor.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE pid = %s AND state = 'idle in transaction'",
                    (actor.pid,),
                )
        self.stage.settle()
        self.observe()

    def finish(self: World) -> None:
        """Drain, wake every process that froze, plan everything once more, and compare with the files."""
        frozen = list(self.stage.actors)
        self.drain()
        for actor in frozen:
            self.run(actor)
        self.drain()
        for name in COLLECTIONS:
            self.submit(name)
        self.drain()
        self.compare()

    def compare(self: World) -> None:
        """Every file is a document with the chunks of its content, or failed; nothing else is there."""
        for name, key in self.keys.items():
            files = {str(path): path.read_text() for path in (self.folder / name).iterdir()}
            found = {
                uri: (document, state)
                for document, uri, state in self.monitor.execute(
                    "SELECT id, uri, state FROM documents WHERE collection_id = %s", (key,)
                ).fetchall()
            }
            texts: dict[int, list[str]] = {}
            for document, text in self.monitor.execute(
                f"SELECT document_id, text FROM chunks_{key} ORDER BY document_id, ordinal"
            ).fetchall():
                texts.setdefault(document, []).append(text)
            if files or found:
                must(set(files) == set(found), f"{name} holds {sorted(found)}, not {sorted(files)}")
            for uri, content in files.items():
                document, state = found[uri]
                if any(trouble in content for trouble in ("bad", "overflow", "poison")):
                    must(state == "failed" or document in texts, f"{uri} is {state}")
                else:
                    must(texts.get(document) == rows_of(content), f"{uri}: {texts.get(document)}")
