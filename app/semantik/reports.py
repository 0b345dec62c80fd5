"""A job as Celery sees it: its task's state, its result, and the events that Flower shows.

The scheduler is the one writer, from the database, so that all of it comes back after Redis was wiped.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from celery import states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError

from semantik.exceptions import JobFailed
from semantik.jobs import PLAN_TASK
from semantik.progress import Progress

PROGRESS = "PROGRESS"


@dataclass(frozen=True)
class Ended:
    """A job that has ended and whose result Celery does not have yet."""

    id: str
    state: str
    planner: str | None
    error: str | None
    collection: str
    uri: str
    listed: int
    unchanged: int
    seconds: float
    fence: int


def _request(job_id: str, planner: str | None) -> Context:
    # Without it, name, arguments and worker vanish from the result.
    return Context(id=job_id, task=PLAN_TASK, args=[job_id], kwargs={}, hostname=planner, retries=0)


def progress(app: Any, broker: Any, job_id: str, planner: str | None, now: Progress) -> None:
    """Store how far a job is. Never for one that has ended: PROGRESS would overwrite a FAILURE.

    One that is tried again has an earlier result, which Celery and Flower would keep: that goes first.
    """
    if app.backend.get_task_meta(job_id, cache=False)["status"] in states.READY_STATES:
        app.backend.forget(job_id)
        _tell(app, broker, planner, "task-retried", job_id, {"exception": "tried again", "traceback": ""})
    app.backend.store_result(job_id, asdict(now), PROGRESS, request=_request(job_id, planner))


def ended(app: Any, broker: Any, job: Ended, last: Progress) -> None:
    """Store the job's result, which ends a waiting `AsyncResult(job_id).get()`, and tell Flower."""
    request = _request(job.id, job.planner)
    result = {"collection": job.collection, "uri": job.uri, "listed": job.listed, "unchanged": job.unchanged}
    result |= asdict(last)
    fields: dict[str, Any]
    if job.state == "failed":
        error = JobFailed(job.error or "failed")
        app.backend.store_result(job.id, error, states.FAILURE, request=request)
        event, fields = "task-failed", {"exception": repr(error), "traceback": ""}
    elif job.state == "cancelled":
        app.backend.store_result(job.id, TaskRevokedError("cancelled"), states.REVOKED, request=request)
        event, fields = "task-revoked", {"terminated": False, "signum": None, "expired": False}
    else:
        app.backend.store_result(job.id, result, states.SUCCESS, request=request)
        event, fields = "task-succeeded", {"result": repr(result), "runtime": job.seconds}
    _tell(app, broker, job.planner, event, job.id, fields)


def _tell(
    app: Any, broker: Any, planner: str | None, event: str, job_id: str, fields: dict[str, Any]
) -> None:
    # From the planner's node: another name would be a worker that Flower has never seen.
    with app.events.Dispatcher(
        broker, hostname=planner or "scheduler", buffer_while_offline=False
    ) as dispatcher:
        dispatcher.send(event, uuid=job_id, **fields)
