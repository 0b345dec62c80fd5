"""Two who hold a shard, or believe it; leases that run out; workers that crash."""

from __future__ import annotations

from typing import Any

from semantik import shards
from semantik.database import query

from ..actors import Actor
from ..statements import must
from ..world import World
from .opening import begin, cut_off, direct, lose_lease, plan, sequence, take


@sequence
def one_message_twice(w: World) -> None:
    begin(w)
    holder = take(w, "a:0", twice=True)
    take(w, "b:0", "")
    w.run(holder)
    w.finish()


@sequence
def two_claims_at_once(w: World) -> None:
    begin(w)
    one = take(w, "a:0", "commit", twice=True)
    two = take(w, "b:0", "")
    must(two.state == "blocked", f"the second claim is {two.state}")
    w.run(one, "embed")
    w.run(two)
    w.run(one)


@sequence
def late_commit_of_a_done_shard(w: World) -> None:
    begin(w)
    frozen = lose_lease(w, until="shards.done")
    w.run(take(w, "b:0", ""))
    w.run(frozen)
    w.finish()


@sequence
def late_commit_of_a_held_shard(w: World) -> None:
    begin(w)
    frozen = lose_lease(w, until="shards.done")
    holder = take(w, "b:0", "shards.done")
    w.run(frozen)
    w.run(holder)


@sequence
def late_commit_of_a_free_shard(w: World) -> None:
    begin(w)
    frozen = lose_lease(w, until="shards.done")
    w.run(frozen)


@sequence
def late_renewal(w: World) -> None:
    begin(w)
    frozen = lose_lease(w)
    holder = take(w, "b:0")
    if keeper := w.renew(frozen):
        w.run(keeper)
    w.expire()
    if keeper := w.renew(holder):
        w.run(keeper)
    w.run(w.turn())
    w.run(holder)


@sequence
def renewal_after_the_commit(w: World) -> None:
    begin(w)
    done = take(w, "a:0", "jobs.close")
    if keeper := w.renew(done):
        w.run(keeper)


@sequence
def late_return(w: World) -> None:
    begin(w)
    frozen = lose_lease(w)
    take(w, "b:0")
    frozen.fault = "full"
    w.run(frozen)


@sequence
def late_crash(w: World) -> None:
    begin(w)
    frozen = lose_lease(w)
    take(w, "b:0")
    w.kill(frozen)
    if parent := w.record_crash("a:0"):
        w.run(parent)


@sequence
def crash_behind_the_commit(w: World) -> None:
    begin(w)
    done = take(w, "a:0", "jobs.close")
    w.kill(done)
    if parent := w.record_crash("a:0"):
        w.run(parent)
    w.finish()


@sequence
def given_back_and_taken_again(w: World) -> None:
    begin(w)
    slot = take(w, "a:0", twice=True)
    slot.fault = "full"
    w.run(slot)
    frozen = take(w, "b:0")
    w.run(frozen)
    w.finish()


@sequence
def own_lease_is_superseded(w: World) -> None:
    begin(w)
    frozen = take(w, "a:0", "shards.done", twice=True)
    w.restart("a:0", power=True)
    w.run(take(w, "a:0", ""))
    w.run(frozen)


@sequence
def own_lease_of_a_number_used_again(w: World) -> None:
    begin(w)
    other = take(w, "a:0", twice=True)
    w.rules.reused.add(other.facts["lease"].claim.shard)
    cut_off(w, other)
    w.restart("a:0", power=True)
    take(w, "a:0")


@sequence
def statements_said_twice(w: World) -> None:
    begin(w)
    found = w.settings("worker", "a:0")
    (shard, other), values = sorted(w.rules.before.shards), {"documents_done": 0, "chunks": 0, "tokens": 0}

    def action(connection: Any) -> None:
        def claim(number: int) -> int:
            held = shards.claim(connection, number, slot="a:0", lease_seconds=60, model_revision=w.revision)
            must(held is not None, f"shard {number} cannot be claimed")
            assert held is not None
            return held.fence

        claim(shard)
        fence = claim(shard)  # a session does not end itself
        shards.release(connection, shard, fence)
        for again in (fence, fence + 1):
            shards.release(connection, shard, again)
            shards.crashed(connection, shard, again, (), limit=2, reason="late")
        fence = claim(other)
        connection.execute("UPDATE job_documents SET outcome = 'skipped' WHERE shard_id = %s", (other,))
        done = values | {"shard": other, "fence": fence, "truncated_tokens": 0, "waits": None, "lease": 60}
        done["skipped"] = 2
        for _ in range(2):
            connection.execute(query("shards.done"), done)
            connection.commit()
        connection.execute(query("shards.renew"), done)
        connection.commit()
        shards.release(connection, other, fence)
        shards.crashed(connection, other, fence, (), limit=2, reason="late")

    must(found.slot == "a:0", "the slot has its settings")
    direct(w, "worker", action)


@sequence
def session_of_a_shard_given_back(w: World) -> None:
    begin(w)
    shard = min(w.messages).argument

    def body(actor: Actor) -> None:
        with actor.connect(w.settings("worker")) as connection:
            held = shards.claim(connection, shard, slot="a:0", lease_seconds=60, model_revision=w.revision)
            assert held is not None
            shards.release(connection, shard, held.fence)
            actor.gate("waits")

    w.run(w.stage.spawn("direct", "direct", body), "waits")
    take(w, "a:0")


@sequence
def another_model(w: World) -> None:
    begin(w)
    w.run(w.deliver(w.messages.pop(0), "a:0", revision="2" * 64))


@sequence
def live_lease_is_left_alone(w: World) -> None:
    begin(w)
    holder = take(w, "a:0")
    w.run(w.turn())
    w.run(holder)


@sequence
def frozen_session_is_ended(w: World) -> None:
    begin(w)
    frozen = take(w, "a:0", "shards.done")
    w.expire()
    w.run(frozen, "commit")
    w.run(w.turn())
    w.run(take(w, "b:0", ""))
    w.run(frozen)
    w.finish()


@sequence
def session_number_is_used_again(w: World) -> None:
    begin(w)
    other = take(w, "a:0")
    w.rules.reused.add(other.facts["lease"].claim.shard)
    cut_off(w, other)
    w.expire()
    w.run(w.turn())


def let_leases_run_out(w: World) -> None:
    """Let the lease of the first shard run out as often as it may."""
    for _ in range(w.settings("scheduler").expiry_limit):
        w.run(w.turn())
        take(w, "a:0")
        w.restart("a:0")
        w.expire()
        w.messages.clear()
    w.run(w.turn())


@sequence
def leases_that_run_out(w: World) -> None:
    plan(w, ("plain",))
    let_leases_run_out(w)
    (shard,) = w.rules.before.shards.values()
    must((shard.state, shard.crashes) == ("failed", 0), f"{shard} after five leases")
    w.finish()


@sequence
def leases_of_many_documents_that_run_out(w: World) -> None:
    job = plan(w, ("plain", "plain", "plain"))
    let_leases_run_out(w)
    whole, *apart = sorted(w.rules.before.shards.values(), key=lambda shard: shard.id)
    must((whole.state, whole.documents) == ("done", 0), f"{whole} after five leases")
    must([(shard.documents, shard.expiries) for shard in apart] == [(1, 0)] * 3, f"{apart}")
    w.drain()
    must(w.rules.documents_of(job) == {"embedded": 3}, "they go on alone")
    w.finish()


@sequence
def poison(w: World) -> None:
    job = begin(w, ("plain", "poison", "plain"))
    w.drain()
    failed = w.rules.documents_of(job)
    must(failed == {"embedded": 2, "failed": 1}, f"poison ends as {failed}")
    must(w.deaths <= w.crash_limit + 1, f"poison killed {w.deaths} times")


@sequence
def crash_that_nobody_saw(w: World) -> None:
    begin(w, ("plain", "plain"))
    dead = take(w, "a:0", twice=True)
    w.kill(dead)
    w.places["a:0"].dead = None
    w.run(take(w, "a:0", ""))
    w.finish()


@sequence
def crashes_of_innocents(w: World) -> None:
    begin(w, ("plain", "plain"))
    for _ in range(2):
        victim = take(w, "a:0", "embed")
        victim.fault = "dies"
        w.run(victim)
        if parent := w.record_crash("a:0"):
            w.run(parent)
        w.messages.clear()
        w.age()
        w.run(w.turn())
    must(len(w.rules.before.shards) == 2, f"one document is set apart: {w.rules.before.shards}")
    w.finish()


@sequence
def cancel_beside_documents_set_apart(w: World) -> None:
    job = begin(w, ("plain", "plain"))
    take(w, "a:0")
    (held,) = w.rules.before.shards.values()

    def body(actor: Actor) -> None:
        with actor.connect(w.settings("worker")) as connection:
            shards.crashed(connection, held.id, held.fence, (), limit=1, reason="signal 9")

    crash = w.run(w.stage.spawn("parent", "parent", body), "shards.shrink")
    person = w.run(w.cancel(job))
    must(person.state == "blocked", f"the person is {person.state}")
    w.run(crash)
    w.run(person)
    made = list(w.rules.before.shards.values())
    must(len(made) == 3, f"each document has a shard of its own: {made}")
    must(all(shard.state in ("done", "cancelled") for shard in made), f"{made} of a cancelled job")
