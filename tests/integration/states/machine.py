"""Random steps of all processes at once."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from .actors import Actor
from .world import COLLECTIONS, PLANNERS, SLOTS, World

#: What a document may be: most can be embedded, each kind of trouble is there.
CONTENTS = ("plain", "prose!", "verse", "plain", "bad", "poison", "overflow")
WHICH = st.integers(0, 11)
STEPS = st.sampled_from((1, 2, 3, 5, 8, 99))


class Cluster(RuleBasedStateMachine):
    """Anything may happen, at any time, in any order; whatever it was, the rules hold."""

    world: ClassVar[World]
    triggers: ClassVar[bool] = True
    examples: ClassVar[int] = 0  # begun

    @initialize(
        contents=st.lists(st.sampled_from(CONTENTS), min_size=3, max_size=5),
        planned=st.sampled_from((6, 12, 99, 99, 99)),
        at_work=st.lists(st.sampled_from((4, 8, 12, 16)), min_size=1, max_size=2),
    )
    def begin(self, contents: list[str], planned: int, at_work: list[int]) -> None:
        """A job in the middle of its planning, or with slots at work."""
        self.world.reset(triggers=self.triggers)
        self.begun = True
        Cluster.examples += 1
        for at, content in enumerate(contents):
            self.world.write("one", at, f"{content} {at}")
        for at in range(2):
            self.world.write("two", at, f"plain {at}")
        self.world.submit("one")
        self.deliver(0, 0, planned)
        self.world.run(self.world.turn())
        for steps in at_work:
            self.deliver(0, 0, steps)

    def teardown(self) -> None:
        if not getattr(self, "begun", False):
            return
        try:
            self.world.finish()
        finally:
            self.world.end()

    # --- what may happen ---

    def pick(self, which: int, among: Any) -> Any:
        among = list(among)
        return among[which % len(among)] if among else None

    def parked(self) -> list[Actor]:
        return [actor for actor in self.world.stage.actors if actor.state == "parked"]

    def jobs(self) -> list[str]:
        return list(self.world.rules.before.jobs)

    @rule(which=WHICH, steps=STEPS)
    def advance(self, which: int, steps: int) -> None:
        if actor := self.pick(which, self.parked()):
            self.world.run(actor, steps=steps)

    @rule(which=WHICH, until=st.sampled_from(("shards.done", "commit", "embed", "jobs.close")))
    def advance_to(self, which: int, until: str) -> None:
        if actor := self.pick(which, (it for it in self.parked() if it.kind == "worker")):
            self.world.run(actor, until)

    @rule(which=WHICH, place=WHICH, steps=STEPS)
    def deliver(self, which: int, place: int, steps: int) -> None:
        message = self.pick(which, self.world.messages)
        if message and (name := self.pick(place, self.world.idle(message.queue))):
            self.world.messages.remove(message)
            self.world.run(self.world.deliver(message, name), steps=steps)

    @rule(which=WHICH)
    def deliver_twice(self, which: int) -> None:
        if message := self.pick(which, self.world.messages):
            self.world.messages.append(message)

    @rule(which=st.one_of(WHICH, st.none()))
    def lose(self, which: int | None) -> None:
        if which is None:
            self.world.messages.clear()
        elif message := self.pick(which, self.world.messages):
            self.world.messages.remove(message)

    @rule(steps=STEPS)
    def turn(self, steps: int) -> None:
        actor = self.world.turn()
        if actor.state == "parked":
            self.world.run(actor, steps=steps)

    @rule(which=WHICH)
    def expire(self, which: int) -> None:
        running = [it.id for it in self.world.rules.before.shards.values() if it.state == "running"]
        if (shard := self.pick(which, running)) is not None:
            self.world.expire(shard=shard)

    @rule()
    def expire_all(self) -> None:
        self.world.expire()

    @rule()
    def age(self) -> None:
        self.world.age()

    @rule(which=WHICH, steps=st.sampled_from((1, 99)))
    def renew(self, which: int, steps: int) -> None:
        actor = self.pick(which, (it for it in self.parked() if "lease" in it.facts))
        if actor and (keeper := self.world.renew(actor)):
            self.world.run(keeper, steps=steps)

    @rule(which=WHICH, fault=st.sampled_from(("dies", "full", "error")))
    def fail(self, which: int, fault: str) -> None:
        if actor := self.pick(which, (it for it in self.parked() if it.kind == "worker")):
            actor.fault = fault

    @rule(which=WHICH)
    def kill(self, which: int) -> None:
        if actor := self.pick(which, self.world.stage.actors):
            self.world.kill(actor)

    @rule(which=WHICH, steps=STEPS)
    def record_crash(self, which: int, steps: int) -> None:
        dead = [name for name, place in self.world.places.items() if place.dead is not None]
        if (name := self.pick(which, dead)) and (parent := self.world.record_crash(name)):
            self.world.run(parent, steps=steps)

    @rule(which=WHICH, power=st.booleans())
    def restart(self, which: int, power: bool) -> None:
        self.world.restart(self.pick(which, (*SLOTS, *PLANNERS)), power=power)
        self.world.observe()

    @rule(collection=st.sampled_from(COLLECTIONS), priority=st.integers(0, 1), send=st.booleans())
    def submit(self, collection: str, priority: int, send: bool) -> None:
        if len(self.jobs()) < 5:
            self.world.submit(collection, priority=priority, send=send)

    @rule(which=WHICH, steps=STEPS)
    def cancel(self, which: int, steps: int) -> None:
        people = sum(it.kind == "person" for it in self.world.stage.actors)
        if (job := self.pick(which, self.jobs())) and people < 2:
            self.world.run(self.world.cancel(job), steps=steps)

    @rule(which=WHICH, what=st.sampled_from(("retry", "pause", "resume")), steps=STEPS)
    def ask(self, which: int, what: str, steps: int) -> None:
        people = sum(it.kind == "person" for it in self.world.stage.actors)
        if (job := self.pick(which, self.jobs())) and people < 2:
            self.world.run(getattr(self.world, what)(job), steps=steps)

    @rule(collection=st.sampled_from(COLLECTIONS), at=st.integers(0, 4), content=st.sampled_from(CONTENTS))
    def write(self, collection: str, at: int, content: str) -> None:
        self.world.write(collection, at, f"{content} {at} again")

    @rule(collection=st.sampled_from(COLLECTIONS), at=st.integers(0, 4))
    def remove(self, collection: str, at: int) -> None:
        self.world.remove(collection, at)

    @rule(which=st.integers(0, 2), state=st.sampled_from(("idle", "draining", "stopped", "silent")))
    def slot(self, which: int, state: str) -> None:
        if state == "silent":
            self.world.silence(SLOTS[which])
        else:
            self.world.beat(SLOTS[which], state)

    @rule(away=st.booleans())
    def redis(self, away: bool) -> None:
        self.world.redis_away = away

    @rule(collection=st.sampled_from(COLLECTIONS), over=st.booleans())
    def build(self, collection: str, over: bool) -> None:
        active = [it for it in self.world.rules.before.jobs.values() if it.state in ("planning", "running")]
        if over or self.world.keys[collection] not in [it.collection for it in active]:
            self.world.build(collection, over=over)
