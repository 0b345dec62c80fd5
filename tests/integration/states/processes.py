"""What processes and people do in a world."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from semantik import jobs, planner
from semantik.database import passes
from semantik.exceptions import NotFound, Refused
from semantik.pulse import Pulse
from semantik.runner import Runner
from semantik.shards import crashed
from semantik.slots import Slot

from .actors import Actor
from .parts import Message, Turns
from .toy import REVISION, ToyKeeper, ToyModel

if TYPE_CHECKING:
    from .world import World


class Processes:
    """The processes of a World."""

    def beat(self: World, slot: str, state: str) -> None:
        self.monitor.execute(
            "INSERT INTO slots (slot, state) VALUES (%(slot)s, %(state)s) ON CONFLICT (slot) DO UPDATE "
            "SET state = excluded.state, last_seen = now()",
            {"slot": slot, "state": state},
        )
        self.slots[slot] = state

    def silence(self: World, slot: str) -> None:
        """Let a slot say nothing for long."""
        self.monitor.execute("UPDATE slots SET last_seen = now() - interval '1 day' WHERE slot = %s", (slot,))
        self.slots[slot] = "silent"

    def deliver(self: World, message: Message, place: str, *, revision: str = REVISION) -> Actor:
        """Hand a message to a slot or a planner whose child is idle."""
        at = self.places[place]
        assert at.child is None or at.child.state == "ended"
        if message.queue == "embed":
            found = self.settings("worker", place)
            pulse = Pulse()
            slot = Slot(found, pulse)
            run = Runner(found, ToyModel(revision), slot, ToyKeeper(), pulse, pulse.child(0))  # type: ignore[arg-type]

            def body(actor: Actor) -> None:
                run.run(message.argument)
        else:
            found = self.settings("planner")
            pulse = Pulse()
            plan = planner.Planner(found, place, ToyKeeper(), pulse.child(0), lambda: pulse.draining)  # type: ignore[arg-type]

            def body(actor: Actor) -> None:
                plan.plan(message.argument)

        def child(actor: Actor) -> None:
            actor.facts |= {"parent": at.parent, "run": at.run, "pulse": pulse, "message": message}
            body(actor)

        kind = "worker" if message.queue == "embed" else "planner"
        at.child = self.stage.spawn(f"{place} {message.argument}", kind, child)
        return at.child

    def run(self: World, actor: Actor, until: str = "", steps: int = 10_000) -> Actor:
        """Move an actor on, until it is about to run `until`, has ended, or waits; the rules look on."""
        while steps and actor.state == "parked" and (not until or actor.at != until):
            self.stage.step(actor)
            self.observe()
            steps -= 1
        for place in self.places.values():
            if place.child is not None and place.child.state == "ended":
                if place.child.died:
                    place.dead = place.child
                    self.deaths += "poisoned" in place.child.facts
                place.child = None
        return actor

    def kill(self: World, actor: Actor) -> None:
        """Kill a process with -9."""
        self.stage.kill(actor)
        for place in self.places.values():
            if place.child is actor:
                place.child, place.dead = None, actor
        self.observe()

    def record_crash(self: World, place: str) -> Actor | None:
        """Let the parent see its child dead, as `worker.record_crash` does; the message comes back."""
        at = self.places[place]
        dead, at.dead = at.dead, None
        if dead is None:
            return None
        message = dead.facts.get("message")
        if message is None:
            return None
        self.messages.append(message)
        note = self.notes.kept.get((at.run, message.argument))
        if note is None or note.pid != dead.number:
            return None
        found = self.settings("worker", place)

        def record(actor: Actor) -> None:
            while True:
                try:
                    with actor.connect(found) as connection:
                        crashed(
                            connection, note.shard, note.fence, note.documents, limit=found.crash_limit,
                            reason=dead.died or "killed",
                        )  # fmt: skip
                        break
                except psycopg.OperationalError:
                    continue
            self.notes.kept.pop((at.run, note.shard), None)

        return self.stage.spawn(f"{place} parent", "parent", record)

    def restart(self: World, place: str, *, power: bool = False) -> None:
        """Start a slot's or planner's service anew; after a power cut its old process may still be there."""
        at = self.places[place]
        if at.child is not None and not power:
            self.kill(at.child)
        self._boot(at)

    def renew(self: World, actor: Actor) -> Actor | None:
        """Let an actor's keeper renew the lease, if it holds one or ever did."""
        lease = actor.facts.get("lease")
        if lease is None:
            return None
        found = self.settings("worker" if actor.kind == "worker" else "planner")

        def renewal(keeper: Actor) -> None:
            with (
                contextlib.suppress(psycopg.OperationalError),
                keeper.connect(found, autocommit=True) as connection,
            ):
                if not lease.renew(connection):
                    lease.lost.set()

        return self.stage.spawn(f"{actor.name} keeper", "keeper", renewal)

    def turn(self: World, *, revision: str = REVISION) -> Actor:
        """Begin a turn of the scheduler, unless one is under way."""
        if self.scheduler is not None and self.scheduler.state != "ended":
            return self.scheduler
        turns = Turns(self)
        turns.settings = replace(turns.settings, model_revision=revision)

        def body(actor: Actor) -> None:
            try:
                with actor.connect(turns.settings, autocommit=True) as connection:
                    turns.turn(connection)
            except Exception as error:
                if not passes(error):
                    raise  # as in `run`, which connects again

        self.scheduler = self.stage.spawn("scheduler", "scheduler", body)
        return self.scheduler

    def person(self: World, name: str, action: Callable[[Any], Any]) -> Actor:
        """Begin what a person asks for; a refusal is an answer."""

        def body(actor: Actor) -> None:
            try:
                with actor.connect(self.settings("operator")) as connection:
                    actor.facts["answer"] = action(connection)
            except (Refused, NotFound) as error:
                actor.facts["refused"] = str(error)
            except psycopg.errors.DeadlockDetected as error:
                self.quarrels.append(f"{name}: {error}")
            except psycopg.OperationalError as error:
                actor.facts["refused"] = str(error)  # the server ended the session

        return self.stage.spawn(name, "person", body)

    def submit(
        self: World, collection: str, *, priority: int = 0, send: bool = True, removal: bool = True
    ) -> str:
        """Submit a job and return its id."""
        uri = str(self.folder / collection)
        found = self.settings("operator")

        def action(connection: Any) -> None:
            job = jobs.submit(connection, found, uri, collection, priority=priority, allow_removal=removal)
            connection.commit()
            made.append(job.id)

        made: list[UUID] = []
        self.run(self.person("submit", action))
        assert made, "a submission waits for nobody"
        if send:
            self.send_task(jobs.PLAN_TASK, [str(made[0])])
        return str(made[0])

    def cancel(self: World, job: str) -> Actor:
        return self.person(f"cancel {job[:8]}", lambda connection: jobs.cancel(connection, job))

    def retry(self: World, job: str, documents: tuple[str, ...] = ()) -> Actor:
        found = self.settings("operator")
        return self.person(f"retry {job[:8]}", lambda session: jobs.retry(session, found, job, documents))

    def pause(self: World, job: str) -> Actor:
        return self.person(f"pause {job[:8]}", lambda connection: jobs.pause(connection, job))

    def resume(self: World, job: str) -> Actor:
        return self.person(f"resume {job[:8]}", lambda connection: jobs.resume(connection, job))
