"""Retry, pause and resume, beside everything else."""

from __future__ import annotations

from semantik import jobs
from semantik.scheduler import SHARD_TASK

from ..actors import Actor
from ..statements import must
from ..world import Message, World
from .opening import answered, begin, cut_off, ended, plan, refused, sequence, take


@sequence
def retry_of_what_failed(w: World) -> None:
    job = ended(w)
    w.write("one", 1, "mended")
    answered(w.run(w.retry(job)))
    must(w.rules.documents_of(job) == {"embedded": 2, "open": 1}, f"{w.rules.documents_of(job)}")
    w.drain()
    must(w.rules.documents_of(job) == {"embedded": 3}, f"{w.rules.documents_of(job)}")
    w.finish()


@sequence
def retry_that_is_refused(w: World) -> None:
    job = begin(w, ("bad", "plain", "plain", "plain"))
    w.run(take(w, "a:0", ""))
    must(w.rules.documents_of(job)["failed"] == 1, "a document has failed, and the job goes on")
    refused(w.run(w.retry(job)))
    w.run(w.cancel(job))
    refused(w.run(w.retry(job)))
    w.write("one", 0, "mended")
    other = w.submit("one")
    w.drain()
    refused(w.run(w.retry(other)))
    w.finish()


@sequence
def retry_under_a_frozen_worker(w: World) -> None:
    job = plan(w, ("plain", "plain", "bad"))
    w.run(w.turn())
    late: list[Actor] = []
    for place in ("a:0", "b:0", "c:0"):
        w.beat(place, "idle")
    # Together first, then each alone.
    for _ in range(2 * w.settings("scheduler").expiry_limit):
        w.age()
        w.run(w.turn())
        while w.messages and (free := w.idle("embed")):
            late.append(take(w, free[0]))
            cut_off(w, late[-1])
            w.restart(free[0], power=True)
        w.expire()
    w.messages.clear()
    w.run(w.turn())
    w.run(w.turn())
    must(w.rules.before.jobs[job].state == "failed", f"{w.rules.before.jobs[job]}")
    answered(w.run(w.retry(job)))
    w.run(late[0])
    w.run(w.turn())
    for actor in late[1:]:
        w.run(actor)
    w.finish()


@sequence
def retry_behind_another_job(w: World) -> None:
    job = ended(w)
    w.write("one", 0, "other")
    w.submit("one")
    w.run(w.deliver(w.messages.pop(), "planner@a"))
    answered(w.run(w.retry(job)))
    w.run(w.turn())
    w.run(w.turn())
    must(w.rules.before.jobs[job].state == "queued", "one job at a time")
    w.finish()


@sequence
def retry_of_an_unplanned_job(w: World) -> None:
    job = w.submit("one", removal=False)
    w.run(w.deliver(w.messages.pop(), "planner@a"))
    must(w.rules.before.jobs[job].state == "failed", "there is nothing to plan")
    w.write("one", 0, "plain")
    answered(w.run(w.retry(job)))
    w.drain()
    must(w.rules.before.jobs[job].state == "completed", f"{w.rules.before.jobs[job]}")
    w.finish()


@sequence
def retry_of_poison(w: World) -> None:
    job = ended(w, ("plain", "poison", "plain", "plain"))
    w.deaths = 0
    answered(w.run(w.retry(job)))
    w.drain()
    must(w.rules.documents_of(job) == {"embedded": 3, "failed": 1}, f"{w.rules.documents_of(job)}")
    must(0 < w.deaths <= w.crash_limit + 1, f"poison killed {w.deaths} times")


@sequence
def retry_and_its_planning_message(w: World) -> None:
    job = ended(w)
    answered(w.run(w.retry(job)))
    w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@a"))
    w.finish()


@sequence
def report_of_a_job_that_is_retried(w: World) -> None:
    job = begin(w, ("plain", "bad"))
    w.run(take(w, "a:0", ""))
    turn = w.run(w.turn(), "scheduler.reported")
    must(turn.at == "scheduler.reported", "an ended job is reported")
    answered(w.run(w.retry(job)))
    w.run(turn)
    w.reported.clear()
    w.drain()
    w.run(w.turn())
    must([of for of, _ in w.reported] == [job], "the second end of a job is reported too")


@sequence
def pause_and_resume(w: World) -> None:
    job = begin(w, ("plain",) * 6)
    holder = take(w, "a:0", "shards.done")
    kept = list(w.messages)
    answered(w.run(w.pause(job)))
    states = sorted(shard.state for shard in w.rules.before.shards.values())
    must(states == ["pending", "pending", "running"], f"a paused job has {states}")
    w.run(w.turn())
    must(w.messages == kept, "a paused job hands out nothing")
    w.run(w.deliver(kept[0], "b:0"))
    w.run(holder)
    w.run(w.turn())
    must(w.messages == kept, "a paused job hands out nothing")
    answered(w.run(w.resume(job)))
    w.finish()


@sequence
def pause_before_its_turn(w: World) -> None:
    w.write("one", 0, "plain")
    job = w.submit("one")
    answered(w.run(w.pause(job)))
    w.age()
    w.run(w.turn())
    w.run(w.deliver(Message(jobs.PLAN_TASK, job), "planner@a"))
    must(w.rules.before.jobs[job].state == "queued", "a paused job is not planned")
    later = w.submit("one")
    w.age()
    w.run(w.turn())
    must(w.rules.before.jobs[later].state == "planning", "it holds up no other")
    w.finish()


@sequence
def pause_under_a_claim(w: World) -> None:
    job = begin(w)
    claim = take(w, "a:0", "commit")
    person = w.run(w.pause(job))
    w.run(claim, "embed")
    w.run(person)
    w.run(claim)
    w.finish()


@sequence
def claim_under_a_pause(w: World) -> None:
    job = begin(w)
    person = w.run(w.pause(job), "commit")
    claim = take(w, "a:0", "")
    w.run(person)
    w.run(claim)
    w.finish()


@sequence
def pause_of_an_ended_job(w: World) -> None:
    job = ended(w)
    refused(w.run(w.pause(job)))
    refused(w.run(w.resume(job)))


@sequence
def pause_under_a_start(w: World) -> None:
    job = w.submit("one", send=False)
    w.age()
    person = w.run(w.pause(job), "commit")
    turn = w.run(w.turn())
    must(turn.state == "blocked", f"the scheduler is {turn.state}")
    w.run(person)
    w.run(turn)
    must(w.rules.before.jobs[job].state == "queued", "a paused job is not started")


@sequence
def hand_out_under_a_pause(w: World) -> None:
    job = plan(w)
    person = w.run(w.pause(job), "commit")
    w.run(w.turn())
    w.run(person)
    w.finish()


@sequence
def claim_of_a_queued_job(w: World) -> None:
    job = ended(w)
    answered(w.run(w.retry(job)))
    (shard,) = (it.id for it in w.rules.before.shards.values() if it.state == "pending")
    w.run(w.deliver(Message(SHARD_TASK, shard), "a:0"))
    w.finish()


@sequence
def retry_of_what_is_gone(w: World) -> None:
    job = ended(w, ("plain", "bad", "plain", "bad"))
    w.submit("one", priority=1)
    w.run(w.deliver(w.messages.pop(), "planner@a"))
    answered(w.run(w.retry(job)))
    w.drain()
    answered(w.run(w.retry(job)))
    for at in (0, 1):
        w.remove("one", at)
    w.write("one", 4, "plain")
    later = w.submit("one", priority=1)
    w.run(w.deliver(w.messages.pop(), "planner@a"))
    must(w.rules.before.jobs[later].state == "running", "the later job comes first")
    w.drain()
    left = w.rules.documents_of(job)
    must(left == {"embedded": 2, "removed": 1, "failed": 1}, f"what is gone ends as {left}")
    w.finish()
