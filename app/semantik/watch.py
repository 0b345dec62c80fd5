"""The parent of a worker watches its GPU: before the pool starts, and every few seconds from then on.

What a thread of its own finds out reaches the child by a note and a flag (`semantik.health`,
`semantik.pulse`), also while Redis is away; which queues are consumed is the loop's to say.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from celery import signals

from semantik import health
from semantik.exceptions import (
    EX_CONFIG,
    GpuLost,
    GpuSilent,
    GpuTaken,
    SemantikError,
    SettingsError,
)
from semantik.health import CONDEMNED, GOOD, RESTING, Condition, Verdict
from semantik.logs import configure, event
from semantik.notify import notify
from semantik.nvml import COMPUTE_EXCLUSIVE, COMPUTE_PROHIBITED, Gpu, NoLibrary, Reading
from semantik.pulse import Pulse
from semantik.settings import Settings

log = logging.getLogger("semantik.health")

#: The queue of shards, as `semantik.celery_app` names it (which loads this module).
EMBED = "embed"
#: Seconds for a GPU to appear or to be let go of, before the service ends and systemd tries again: drivers
#: are loaded beside it when a host boots, and a process that was killed takes a moment to go.
WAIT_SECONDS = 60.0
#: As the unit's TimeoutStartSec=: loading the model has all of it, however long the GPU was waited for.
_START_SECONDS = 600
#: Looks one after the other that the driver may refuse: it does so while another program resets a card.
SILENT_LOOKS = 3

#: Held while NVML is called: what is forked in the middle of a call would have its locks closed for ever.
_calls = threading.Lock()
_FORK_SECONDS = 1.0
_watch: list[Watch] = []


class Watch(threading.Thread):
    """The thread. `verdict` is what it found out last."""

    def __init__(self, settings: Settings, gpu: Gpu, baseline: Reading, pulse: Pulse) -> None:
        super().__init__(name="health", daemon=True)
        self._settings = settings
        self._gpu = gpu
        self._baseline = baseline
        self._pulse = pulse
        self._condition = Condition(settings.rest_seconds)
        self._xids: set[int] = set()
        self._silent = 0
        self._looked_at = time.monotonic()
        self._ended = threading.Event()

    @property
    def verdict(self) -> Verdict:
        """The GPU's state now."""
        return health.age(self._settings, self._condition.verdict, time.monotonic() - self._looked_at)

    def end(self) -> None:
        """Ask the thread to end."""
        self._ended.set()

    def run(self) -> None:
        """Look, every few seconds."""
        while not self._ended.wait(self._settings.health_seconds):
            try:
                self.look()
            except Exception as error:  # without further looks the GPU counts as silent, which is safe
                event(log, "the look at the GPU failed", level=logging.ERROR, traceback=True, error=error)

    def look(self) -> None:
        """Look once; judge, act on it and note it."""
        reading, verdict = self._take()
        now, before = time.monotonic(), self._condition.verdict
        self._looked_at = now
        verdict = self._condition.take(verdict, now)
        if verdict.state == CONDEMNED:
            self._pulse.condemn()  # before anything that could fail
        self._tell(verdict, before)
        health.write(self._settings, verdict, reading)

    def _tell(self, verdict: Verdict, before: Verdict) -> None:
        """Say what has changed in the journal, and what is not well in the unit's status, each time anew.

        A child that takes the place of another says that it is ready.
        """
        gpu, state = self._gpu.uuid, verdict.state
        if state != before.state and state == GOOD:
            event(log, "the GPU is well again", gpu=gpu)
            notify("STATUS=ready")
        elif state != before.state:
            level = logging.CRITICAL if state == CONDEMNED else logging.WARNING
            event(log, f"the GPU is {state}", level=level, gpu=gpu, reason=verdict.reason)
        if state != GOOD:
            notify(f"STATUS=its GPU is {state}: {verdict.reason}")

    def _take(self) -> tuple[Reading | None, Verdict]:
        """Return what the driver says now, if it says it, and the verdict on it alone."""
        try:
            with _calls:
                self._heard(self._gpu.xids())
                reading = self._gpu.read()
        except (GpuLost, GpuSilent) as error:
            known = health.judge(Reading(), self._baseline, self._xids)  # an Xid says more
            self._silent += 1
            if known.state == CONDEMNED:
                return None, known
            if isinstance(error, GpuLost):
                return None, Verdict(CONDEMNED, str(error))
            return None, Verdict(RESTING, str(error)) if self._silent >= SILENT_LOOKS else known
        self._silent = 0
        return reading, health.judge(reading, self._baseline, self._xids)

    def _heard(self, xids: list[int]) -> None:
        self._xids.update(xids)
        for xid in sorted(set(xids) - set(health.FATAL_XIDS)):
            event(log, "Xid, let pass", level=logging.WARNING, gpu=self._gpu.uuid, xid=xid)


# --- the start of the service ---


def install(settings: Settings, pulse: Pulse) -> None:
    """Have the GPU looked at before the pool starts. A GPU that cannot be used ends the service there."""

    def starting(sender: Any, **_: Any) -> None:
        configure()  # Celery sets its log up later
        try:
            watch = begin(settings, pulse, concurrency=int(sender.concurrency))
        except SemantikError as error:
            event(log, "cannot start", level=logging.CRITICAL, reason=error)
            notify(f"STATUS=cannot start: {error}")
            sys.exit(EX_CONFIG if isinstance(error, SettingsError) else 1)
        if watch is not None:
            _watch[:] = [watch]
            _mind_forks()
            watch.start()

    signals.worker_init.connect(starting, weak=False)


def begin(
    settings: Settings, pulse: Pulse, *, concurrency: int = 1, wait_seconds: float = WAIT_SECONDS
) -> Watch | None:
    """Look at the slot's GPU; return what goes on watching it, None where there is nothing to watch.

    Raises SettingsError where no waiting helps. Waits for anything else, then raises GpuLost, GpuSilent or
    GpuTaken.
    """
    health.forget(settings)
    if not health.watched(settings):
        return None
    deadline, said = time.monotonic() + wait_seconds, ""
    while True:
        gpu = None
        try:
            gpu = Gpu(settings.cuda_visible_devices)
            reading = gpu.read()
            refuse(settings, reading, concurrency)
            break
        except NoLibrary as error:
            if settings.device != "cpu":
                event(log, "the GPU's health is not watched", level=logging.WARNING, reason=error)
            return None
        except SemantikError as error:
            if gpu is not None:
                gpu.close()
            if isinstance(error, SettingsError) or time.monotonic() >= deadline:
                raise
            if str(error) != said:
                said = str(error)
                event(log, "waits for its GPU", level=logging.WARNING, reason=said)
            notify(f"STATUS=waits for its GPU: {said}\nEXTEND_TIMEOUT_USEC={_START_SECONDS * 1_000_000}")
            time.sleep(min(1.0, wait_seconds))
    health.write(settings, Verdict(), reading)
    return Watch(settings, gpu, reading, pulse)


def refuse(settings: Settings, reading: Reading, concurrency: int) -> None:
    """Raise SettingsError or GpuTaken where a worker could not compute on this GPU, or should not."""
    uuid = settings.cuda_visible_devices
    wanted = settings.model_max_memory_gb * concurrency
    if reading.memory_bytes is not None and wanted * 2**30 > reading.memory_bytes:
        times = f" x {concurrency} processes (SEMANTIK_CONCURRENCY)" if concurrency > 1 else ""
        raise SettingsError(
            f"MODEL_MAX_MEMORY_GB={settings.model_max_memory_gb:g}{times} is more than GPU {uuid} has, "
            f"{reading.memory_bytes / 2**30:.1f} GB: lower it, or set 0 for the whole card"
        )
    if reading.remap_failed:
        raise SettingsError(
            f"a row of the memory of GPU {uuid} could not be remapped: it has to be replaced; until then "
            "name it in worker_gpu_exclude and run site.yml"
        )
    if reading.compute_mode == COMPUTE_PROHIBITED:
        raise GpuTaken(f"GPU {uuid} is in compute mode PROHIBITED: nvidia-smi -i {uuid} -c DEFAULT")
    if reading.compute_mode == COMPUTE_EXCLUSIVE:
        if concurrency > 1:
            raise SettingsError(
                f"GPU {uuid} is in compute mode EXCLUSIVE_PROCESS and SEMANTIK_CONCURRENCY is {concurrency}: "
                f"set worker_concurrency to 1, or nvidia-smi -i {uuid} -c DEFAULT"
            )
        others = sorted(set(reading.processes or ()) - {os.getpid()})
        if others:
            pids = ", ".join(map(str, others))
            raise GpuTaken(
                f"GPU {uuid} is in compute mode EXCLUSIVE_PROCESS, and process {pids} has it: end that "
                f"(ps -fp {others[0]}), or nvidia-smi -i {uuid} -c DEFAULT"
            )


def _mind_forks() -> None:
    held = []

    def before() -> None:
        held.append(_calls.acquire(timeout=_FORK_SECONDS))

    def after() -> None:
        if held.pop():
            _calls.release()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)


# --- the loop ---


def hold_back(consumer: Any) -> None:
    """Let the consumer take no shards unless the GPU is good: also before it has taken its first message."""
    if _watch and _watch[0].verdict.state != GOOD and EMBED in consumer.app.amqp.queues.consume_from:
        event(log, "takes no shards", level=logging.WARNING, reason=_watch[0].verdict.reason)
        consumer.cancel_task_queue(EMBED)


def turn(consumer: Any, pulse: Pulse) -> None:
    """Let the consumer take shards while the GPU is good. For the parent's loop alone, each second.

    Celery keeps with the application which queues a worker consumes, so the choice outlives a connection.
    The slot's own queue stays, for checks of this very GPU.
    """
    if not _watch or pulse.draining or consumer.connection is None or consumer.task_consumer is None:
        return
    takes = EMBED in consumer.app.amqp.queues.consume_from
    if _watch[0].verdict.state != GOOD:
        hold_back(consumer)
    elif not (takes and consumer.task_consumer.consuming_from(EMBED)):
        event(log, "takes shards again")
        with suppress(*consumer.connection_errors):  # the loop meets it too, and comes back
            consumer.add_task_queue(EMBED)
