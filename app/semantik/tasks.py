"""The cluster's four tasks. The first two carry nothing but an id: what it stands for is in the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from celery import Task
from celery.exceptions import Ignore

from semantik import health
from semantik.celery_app import app
from semantik.exceptions import SemantikError
from semantik.worker import current

Function = TypeVar("Function", bound=Callable[..., Any])


class ShardTask(Task):  # type: ignore[misc]
    """A task whose lost child is noticed by the parent."""

    Request = "semantik.worker:ShardRequest"


task: Callable[..., Callable[[Function], Function]] = app.task


# The scheduler alone writes this task's state: PROGRESS while the job runs, its result when the job ends.
@task(name="semantik.tasks.process_embedding_job_task", track_started=False)
def process_embedding_job_task(job_id: str) -> None:
    """Plan the job. Its id is the task's, and the task's result is the job's."""
    planner = current().planner
    if planner is None:
        raise SemantikError("jobs are planned by semantik-planner.service, on queue 'ingest' alone")
    planner.plan(job_id)
    raise Ignore


@task(name="semantik.tasks.embed_shard_task", base=ShardTask, ignore_result=True)
def embed_shard_task(shard_id: int) -> None:
    """Embed the shard, or leave it when it is not to be had."""
    runner = current().runner
    if runner is None:
        raise SemantikError("shards are embedded by semantik-worker@N.service, on queue 'embed' alone")
    runner.run(shard_id)


@task(name="semantik.tasks.embed_query_task")
def embed_query_task(text: str) -> list[float]:
    """Return the question's vector, by the collection's model on the CPU."""
    model = current().model
    if model is None:
        raise SemantikError("questions are embedded by semantik-query.service, on queue 'query' alone")
    return [float(value) for value in model.embed_question(text)]


@task(name="semantik.tasks.test_task")
def test_task() -> dict[str, Any]:
    """Compute on this slot's device, compare with the CPU, and say who answered.

    Sent to queue slot.<host>.<n>, which one worker alone consumes. Raises SemantikError when the device
    computes something else than the CPU.
    """
    import torch

    child = current()
    if child.model is None:
        raise SemantikError("this worker holds no model, so it has no device to test")
    device, settings = child.model.device, child.settings
    note = health.read(settings)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    difference = float((left.to(device) @ right.to(device)).cpu().sub(left @ right).abs().max())
    if not difference < 1e-1:  # TF32 keeps 10 bits: sums of 256 products differ by some 1e-2
        raise SemantikError(f"{device} and the CPU differ by {difference:.3g} in a product of two matrices")
    return {
        "host": settings.host,
        "slot": settings.slot,
        "device": device,
        "gpu_uuid": settings.cuda_visible_devices,
        "gpu_name": settings.gpu_name or (torch.cuda.get_device_name(0) if device == "cuda" else ""),
        "model": child.model.name,
        "model_revision": child.model.revision,
        "release": settings.release,
        "difference": difference,
        # As the parent saw it last, a few seconds ago; None where it watches no GPU.
        "trouble": note.reason if note else None,
        "ecc_errors": note.ecc_errors if note else None,
        "sm_mhz": note.sm_mhz if note else None,
    }
