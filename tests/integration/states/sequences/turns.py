"""Whose turn it is, what is handed out, and what a cancelled job leaves."""

from __future__ import annotations

from typing import Any

from semantik import jobs
from semantik.database import query

from ..statements import FINAL_JOB, must
from ..world import Message, World
from .opening import begin, direct, plan, sequence, take


@sequence
def cancel_under_a_commit(w: World) -> None:
    begin(w)
    holder = take(w, "a:0", "shards.done")
    w.run(w.cancel(next(iter(w.rules.before.jobs))))
    w.run(holder)
    w.finish()


@sequence
def cancel_behind_a_commit(w: World) -> None:
    job = begin(w)
    holder = take(w, "a:0", "shards.done")
    w.run(holder, "commit")
    person = w.run(w.cancel(job))
    must(person.state == "blocked", f"cancelling is {person.state}")
    w.run(holder, "jobs.close")
    w.run(person)
    w.run(holder)


@sequence
def cancel_of_half_a_job(w: World) -> None:
    job = begin(w)
    done = take(w, "a:0", "jobs.close")
    w.run(w.cancel(job))
    w.run(done)


@sequence
def cancel_of_an_ended_job(w: World) -> None:
    job = begin(w, ("plain",))
    w.run(take(w, "a:0", ""))
    person = w.run(w.cancel(job))
    must("refused" in person.facts, "an ended job is not cancelled")


@sequence
def close_of_half_a_job(w: World) -> None:
    begin(w)
    w.run(take(w, "a:0", ""))
    w.run(w.turn())
    w.run(take(w, "b:0", ""))


@sequence
def close_of_a_cancelled_job(w: World) -> None:
    job = begin(w)
    w.run(w.cancel(job))
    direct(w, "worker", lambda connection: jobs.close(connection, job))


@sequence
def turns_of_jobs(w: World) -> None:
    begin(w)
    second = w.submit("one", send=False)
    third = w.submit("one", send=False, priority=1)
    other = w.submit("two", send=False)
    w.age()
    w.run(w.turn())
    now = w.rules.before.jobs
    must(now[other].state == "planning", "a job of a free collection has its turn")
    must(now[second].state == now[third].state == "queued", "one job at a time")
    w.messages = [message for message in w.messages if message.argument != other]
    w.run(w.deliver(Message(jobs.PLAN_TASK, second), "planner@b"))
    w.finish()


@sequence
def turn_behind_an_ended_job(w: World) -> None:
    w.write("one", 0, "plain")
    w.submit("one", priority=1)
    w.drain()
    w.submit("one", send=False)
    w.drain()


@sequence
def turn_of_a_job_being_cancelled(w: World) -> None:
    job = w.submit("one", send=False)
    w.age()
    person = w.run(w.cancel(job), "commit")
    turn = w.run(w.turn())
    must(turn.state == "blocked", f"the scheduler is {turn.state}")
    w.run(person)
    w.run(turn)


@sequence
def turn_while_an_index_is_built(w: World) -> None:
    w.build("one")
    job = w.submit("one")
    w.age()
    w.run(w.turn())
    w.run(w.deliver(w.messages[0], "planner@a"))
    must(w.rules.before.jobs[job].state == "queued", "the job waits for the index")


@sequence
def index_under_a_job(w: World) -> None:
    begin(w)
    w.run(take(w, "a:0", ""))
    w.exact = 1
    w.run(w.turn())
    w.drain()
    w.exact = 1
    w.run(w.turn())
    must(w.indexing == {w.keys["one"]}, "an index is built once no job is active")
    w.run(w.turn())


@sequence
def index_that_another_built(w: World) -> None:
    """A build that failed, of a scheduler that was away meanwhile."""
    collection = w.keys["one"]
    w.monitor.execute("UPDATE collections SET index_state = 'ready' WHERE id = %s", (collection,))

    def action(connection: Any) -> None:
        connection.execute(query("scheduler.forget_build"), {"collection": collection})
        connection.commit()

    direct(w, "scheduler", action)
    row = w.monitor.execute("SELECT index_state FROM collections WHERE id = %s", (collection,)).fetchone()
    must(row == ("ready",), f"the index is forgotten: {row}")


@sequence
def window(w: World) -> None:
    w.beat("b:0", "draining")
    w.beat("c:0", "idle")
    w.silence("c:0")
    plan(w, ("plain",) * 8)
    w.run(w.turn())
    w.run(w.turn())
    must(len(w.messages) == 2, f"{len(w.messages)} shards for one live slot")
    take(w, "a:0")
    w.run(w.turn())
    w.run(w.places["a:0"].child or take(w, "a:0"))
    w.run(w.turn())
    w.silence("a:0")
    w.run(w.turn())


@sequence
def priorities(w: World) -> None:
    plan(w, ("plain",) * 6)
    for at in range(4):
        w.write("two", at, "plain")
    w.submit("two", priority=1)
    w.run(w.deliver(w.messages.pop(), "planner@a"))
    w.beat("b:0", "stopped")
    w.run(w.turn())


@sequence
def hand_out_behind_a_claim(w: World) -> None:
    begin(w)
    slot = take(w, "a:0", twice=True)
    slot.fault = "full"
    w.run(slot)
    frozen = take(w, "b:0", "commit")
    turn = w.run(w.turn())
    must(turn.state == "ended", f"the scheduler waits for a frozen claim at {turn.at}")
    w.run(frozen)


@sequence
def messages_lost(w: World) -> None:
    begin(w)
    w.run(take(w, "a:0", ""))
    w.messages.clear()
    w.run(w.turn())
    w.age()
    w.run(w.turn())
    must(len(w.messages) == 1, f"{len(w.messages)} messages are sent again")
    w.finish()


@sequence
def some_messages_lost(w: World) -> None:
    begin(w, ("plain",) * 8)
    w.age()
    del w.messages[1:]
    w.run(w.turn())
    must(len(w.messages) == 4, f"{len(w.messages)} messages for four shards")


@sequence
def resent_behind_a_claim(w: World) -> None:
    begin(w, ("plain",))
    w.age()
    claim = take(w, "a:0", "commit")
    turn = w.run(w.turn())
    must(turn.state == "ended", f"the scheduler waits for a frozen claim at {turn.at}")
    w.run(claim)


@sequence
def foreign_model(w: World) -> None:
    job = begin(w)
    holder = take(w, "a:0")
    w.run(take(w, "b:0", ""))
    w.run(w.turn(revision="2" * 64))
    must(w.rules.before.jobs[job].state == "failed", "a job of another model fails")
    w.run(holder)


@sequence
def foreign_plan(w: World) -> None:
    w.write("one", 0, "plain")
    job = w.submit("one")
    planner = w.run(w.deliver(w.messages[0], "planner@a"), "planner.planned")
    w.run(w.turn(revision="2" * 64))
    must(w.rules.before.jobs[job].state == "failed", "a job of another model fails")
    w.run(planner)


@sequence
def foreign_ended_job(w: World) -> None:
    job = begin(w, ("plain",))
    w.run(take(w, "a:0", ""))

    def action(connection: Any) -> None:
        for statement in ("scheduler.fail_job", "scheduler.fail_shards"):
            connection.execute(query(statement), {"job": job, "reason": "another model"})
        connection.commit()

    must(w.rules.before.jobs[job].state in FINAL_JOB, "the job has ended")
    direct(w, "scheduler", action)
