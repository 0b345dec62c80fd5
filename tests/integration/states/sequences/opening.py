"""How most sequences begin, and the register of them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..actors import Actor
from ..statements import must
from ..world import World

Sequence = Callable[[World], None]
SEQUENCES: dict[str, Sequence] = {}


def sequence(function: Sequence) -> Sequence:
    """Put a sequence into the register."""
    SEQUENCES[function.__name__] = function
    return function


def plan(w: World, contents: tuple[str, ...] = ("plain",) * 4, *, removal: bool = True) -> str:
    """Submit `one` with these documents and plan it; nothing is handed out yet."""
    for at, content in enumerate(contents):
        w.write("one", at, content)
    job = w.submit("one", removal=removal)
    w.run(w.deliver(w.messages.pop(), "planner@a"))
    return job


def begin(w: World, contents: tuple[str, ...] = ("plain",) * 4) -> str:
    """Plan, and hand the first shards out."""
    job = plan(w, contents)
    w.run(w.turn())
    return job


def take(w: World, place: str, until: str = "embed", *, twice: bool = False) -> Actor:
    """Deliver the message of the first shard, which stays when it is sent `twice`; move on to `until`."""
    message = min(it for it in w.messages if it.queue == "embed")
    if not twice:
        w.messages.remove(message)
    return w.run(w.deliver(message, place), until)


def cut_off(w: World, actor: Actor) -> None:
    """Let nobody be able to end the actor's session: its number in the rows is another's."""
    w.monitor.execute(
        "UPDATE shards SET backend_start = '2000-01-01' WHERE state = 'running' AND backend_pid = %s",
        (actor.pid,),
    )
    w.monitor.execute(
        "UPDATE jobs SET backend_start = '2000-01-01' WHERE state = 'planning' AND backend_pid = %s",
        (actor.pid,),
    )


def state(w: World, shard: int) -> str:
    return w.rules.before.shards[shard].state


def direct(w: World, role: str, action: Callable[[Any], None]) -> None:
    """Run statements on one session, as no process would, to see what each does by itself."""

    def body(actor: Actor) -> None:
        with actor.connect(w.settings(role)) as connection:
            action(connection)

    w.run(w.stage.spawn("direct", "direct", body))


def lose_lease(w: World, place: str = "a:0", until: str = "embed") -> Actor:
    """A slot freezes with its COPY open or before `until`, cut off from everyone, and its shard goes back."""
    frozen = take(w, place, until)
    cut_off(w, frozen)
    w.expire()
    w.messages.clear()
    w.run(w.turn())
    return frozen


def ended(w: World, contents: tuple[str, ...] = ("plain", "bad", "plain")) -> str:
    """Let a job end with errors."""
    job = begin(w, contents)
    w.drain()
    must(w.rules.before.jobs[job].state == "completed_with_errors", f"{w.rules.before.jobs[job]}")
    return job


def answered(actor: Actor) -> Actor:
    must("refused" not in actor.facts, f"{actor.name}: {actor.facts.get('refused')}")
    return actor


def refused(actor: Actor) -> Actor:
    must("refused" in actor.facts, f"{actor.name} is not refused")
    return actor
