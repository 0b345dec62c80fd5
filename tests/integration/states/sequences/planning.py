"""Planners that come twice, too late, or die."""

from __future__ import annotations

from typing import Any

from semantik import jobs
from semantik.database import query

from ..actors import Actor
from ..statements import must
from ..world import Message, World
from .opening import begin, cut_off, direct, plan, sequence


@sequence
def one_plan_twice(w: World) -> None:
    w.write("one", 0, "plain")
    job = w.submit("one")
    one = w.run(w.deliver(w.messages[0], "planner@a"), "planner.planned")
    w.run(w.deliver(w.messages[0], "planner@b"))
    w.run(one)
    w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@b"))


def lose_plan(w: World, until: str) -> tuple[str, Actor]:
    w.write("one", 0, "plain")
    job = w.submit("one", removal=False)
    late = w.run(w.deliver(w.messages[0], "planner@a"), until)
    cut_off(w, late)
    w.expire()
    w.run(w.turn())
    return job, late


@sequence
def late_plan_of_a_running_job(w: World) -> None:
    job, late = lose_plan(w, "planner.planned")
    w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@b"))
    w.run(late)
    w.finish()


@sequence
def late_plan_of_a_held_job(w: World) -> None:
    job, late = lose_plan(w, "planner.planned")
    holder = w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@b"), "planner.cut")
    if keeper := w.renew(late):
        w.run(keeper)
    w.run(late)
    w.run(holder)


@sequence
def late_plan_of_a_free_job(w: World) -> None:
    _, late = lose_plan(w, "planner.planned")
    w.run(late)


@sequence
def late_end_of_a_plan(w: World) -> None:
    for until, stop in (("planner.make_planned", True), ("planner.make_listed", False)):
        job, late = lose_plan(w, until)
        holder = w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@b"), "planner.cut")
        if stop:
            late.facts["pulse"].drain(0)
        else:
            w.remove("one", 0)
        w.run(late)
        w.run(holder)
        w.run(w.cancel(job))
        w.messages.clear()


@sequence
def renewal_of_a_finished_plan(w: World) -> None:
    w.write("one", 0, "plain")
    w.submit("one")
    planner = w.run(w.deliver(w.messages[0], "planner@a"), "jobs.close")
    if keeper := w.renew(planner):
        w.run(keeper)


@sequence
def end_of_a_finished_plan(w: World) -> None:
    job = plan(w)
    fence = w.rules.before.jobs[job].fence

    def action(connection: Any) -> None:
        for statement in ("planner.release", "planner.fail"):
            values = {"job": job, "fence": fence, "error": "late", "interrupted": False}
            connection.execute(query(statement), values)
            connection.commit()

    direct(w, "planner", action)


@sequence
def plan_said_twice(w: World) -> None:
    job = plan(w)
    fence = w.rules.before.jobs[job].fence

    def action(connection: Any) -> None:
        connection.execute("CREATE TEMPORARY TABLE planned (id bigint) ON COMMIT DROP")
        connection.execute(query("planner.planned"), {"job": job, "fence": fence, "listed": 0})
        connection.commit()

    direct(w, "planner", action)


@sequence
def plan_that_fails(w: World) -> None:
    job = w.submit("one", removal=False)
    w.run(w.deliver(w.messages[0], "planner@a"))
    must(w.rules.before.jobs[job].state == "failed", "nothing is there, and nothing may be removed")


@sequence
def cancel_under_a_plan(w: World) -> None:
    w.write("one", 0, "plain")
    job = w.submit("one")
    planner = w.run(w.deliver(w.messages[0], "planner@a"), "planner.planned")
    w.run(w.cancel(job))
    w.run(planner)


@sequence
def plan_given_back(w: World) -> None:
    w.write("one", 0, "plain")
    job = w.submit("one")
    planner = w.run(w.deliver(w.messages[0], "planner@a"), "planner.make_planned")
    planner.facts["pulse"].drain(0)
    w.run(planner)
    left = w.rules.before.jobs[job]
    must((left.state, left.attempts) == ("planning", 0), f"{left} waits for the next planner, with no mark")
    w.finish()


@sequence
def own_plan_is_superseded(w: World) -> None:
    w.write("one", 0, "plain")
    w.submit("one")
    frozen = w.run(w.deliver(w.messages[0], "planner@a"), "planner.planned")
    w.restart("planner@a", power=True)
    w.run(w.deliver(w.messages[0], "planner@a"))
    w.run(frozen)


@sequence
def own_plan_of_a_number_used_again(w: World) -> None:
    w.write("one", 0, "plain")
    job = w.submit("one")
    other = w.run(w.deliver(w.messages[0], "planner@a"), "planner.planned")
    w.rules.reused_plans.add(job)
    cut_off(w, other)
    w.restart("planner@a", power=True)
    w.run(w.deliver(w.messages[0], "planner@a"), "planner.planned")
    cut_off(w, w.places["planner@a"].child or other)
    w.expire()
    w.run(w.turn())


@sequence
def session_of_a_finished_plan(w: World) -> None:
    w.write("one", 0, "plain")
    w.submit("one")
    w.run(w.deliver(w.messages[0], "planner@a"), "jobs.close")
    w.restart("planner@a", power=True)
    w.run(w.deliver(w.messages[0], "planner@a"))


@sequence
def claims_of_one_planning_session(w: World) -> None:
    w.write("one", 0, "plain")
    job = w.submit("one")

    def action(connection: Any) -> None:
        values = {"job": job, "node": "planner@a", "lease": 60, "count": True, "limit": 5}
        for _ in range(2):
            connection.execute(query("planner.end_own"), values)
            connection.execute(query("planner.claim"), values)
            connection.commit()

    direct(w, "planner", action)


@sequence
def planning_that_breaks_off(w: World) -> None:
    w.write("one", 0, "plain")
    job = w.submit("one")
    for attempt in range(w.plan_limit):
        planner = w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@a"), "planner.planned")
        w.run(w.turn())
        must(w.rules.before.jobs[job].state == "planning", "a plan under way is not given up")
        cut_off(w, planner)
        w.restart("planner@a", power=True)
        if attempt < w.plan_limit - 1:
            w.expire()
            w.run(w.turn())
    w.expire()
    w.run(w.turn())
    must(w.rules.before.jobs[job].state == "failed", f"{w.rules.before.jobs[job]} is given up")
    for actor in list(w.stage.actors):
        w.run(actor)


@sequence
def plan_that_kills_its_planner(w: World) -> None:
    """Redis hands the message back at each death, to the very planner whose lease lives."""
    w.write("one", 0, "plain")
    job = w.submit("one")
    for _ in range(w.plan_limit):
        planner = w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@a"), "planner.planned")
        w.kill(planner)
    w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@a"))
    w.expire()
    w.run(w.turn())
    must(w.rules.before.jobs[job].state == "failed", f"{w.rules.before.jobs[job]} is given up")


@sequence
def planning_that_succeeds_at_last(w: World) -> None:
    w.write("one", 0, "plain")
    job = w.submit("one")
    for _ in range(w.plan_limit - 1):
        w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@a"), "planner.planned")
        w.restart("planner@a")
        w.expire()
        w.run(w.turn())
    w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@a"))
    w.run(w.turn())
    w.finish()


@sequence
def plan_of_a_dead_planner(w: World) -> None:
    w.write("one", 0, "plain")
    w.submit("one")
    planner = w.run(w.deliver(w.messages[0], "planner@a"), "planner.planned")
    w.run(w.turn())
    w.run(planner, "commit")
    w.run(w.turn())
    must(planner.state == "parked", "a planner that works is left alone")


@sequence
def documents_come_and_go(w: World) -> None:
    begin(w, ("plain", "prose!", "verse", "plain", "overflow"))
    w.drain()
    for at, content in enumerate(("bad", "overflow", "other verse")):
        w.write("one", at, content)
    w.remove("one", 3)
    w.submit("one")
    w.finish()
