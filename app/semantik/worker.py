"""What makes a Celery worker one of this cluster's: its model, its slot, its watchdog and its crashes.

The parent process never imports torch, starts no query and holds no lease; it watches. The one child
(Celery's prefork pool, concurrency 1 per GPU) loads the model once and does the work.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import billiard
import psycopg
from celery import Celery, bootsteps, signals
from celery.worker.request import Request

from semantik import notes, watch
from semantik.consumer import is_not_repeated
from semantik.database import Connection, connect, passes, query, retry
from semantik.exceptions import EX_CONFIG, DatabaseUnavailable, SemantikError, SettingsError
from semantik.leases import Keeper, stall_seconds
from semantik.logs import FORMAT, event
from semantik.notify import notify
from semantik.planner import Planner
from semantik.pulse import Pulse
from semantik.settings import Settings
from semantik.slots import Slot, heartbeat

if TYPE_CHECKING:
    from semantik.model import Model
    from semantik.runner import Runner

log = logging.getLogger("semantik.worker")

ROLES = ("worker", "query", "planner")
#: Seconds between two signs of life to systemd; WatchdogSec is 60.
_FEED_SECONDS = 10.0
#: Seconds the parent's loop may stand still while it is connected. Each call to Redis ends after 10 s.
_LOOP_SECONDS = 45.0
#: Seconds the parent tries to record a crash; its child does it later where the database is away.
_CRASH_SECONDS = 5.0


@dataclass
class Child:
    """What the pool's child process works with. The parent has none."""

    settings: Settings
    role: str
    model: Model | None = None
    runner: Runner | None = None
    planner: Planner | None = None
    slot: Slot | None = None
    keeper: Keeper | None = None


_child: Child | None = None
_pulse = Pulse()
#: When the parent's event loop last turned (CLOCK_MONOTONIC), and its consumer once there is one.
_turned_at = [0.0]
_consumer: list[Any] = []


def current() -> Child:
    """Return this process's Child. Raises SettingsError outside a worker of this cluster."""
    if _child is None:
        raise SettingsError(
            "this task runs in a worker started by semantik's units: SEMANTIK_ROLE is not set for this "
            "process"
        )
    return _child


def install(app: Celery, settings: Settings) -> None:
    """Connect this process's role to Celery's signals. Raises SettingsError when the role cannot work."""
    if settings.role not in ROLES:
        raise SettingsError(f"SEMANTIK_ROLE={settings.role!r}: choose one of {', '.join(ROLES)}")
    if settings.role == "worker" and not settings.slot:
        raise SettingsError("SEMANTIK_SLOT is not set: a worker's unit sets it to host:n")
    app.steps["consumer"].add(LoopWatch)
    if settings.role == "worker":
        watch.install(settings, _pulse)
    app.conf.update(worker_log_format=FORMAT, worker_task_log_format=FORMAT)

    def quiet(instance: Any, **_: Any) -> None:
        instance.quiet = True
        # Shards and jobs are logged by their own ids; Celery's lines would say the same again.
        for name in ("celery.worker.strategy", "celery.app.trace", "sentence_transformers"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # A lost child is one line of record_crash and one of the pool's, not a traceback through the pool.
        logging.getLogger("celery.worker.request").setLevel(logging.CRITICAL)
        logging.getLogger("celery.worker.consumer.consumer").addFilter(is_not_repeated)
        threading.Thread(target=_feed, args=(settings,), name="watchdog", daemon=True).start()

    def stopping(**_: Any) -> None:
        _pulse.drain(settings.drain_seconds)
        notify("STOPPING=1")

    def stopped(**_: Any) -> None:
        if _pulse.failed:
            sys.exit(_pulse.failed)

    signals.celeryd_init.connect(quiet, weak=False)
    signals.worker_shutting_down.connect(stopping, weak=False)
    signals.worker_shutdown.connect(stopped, weak=False)
    signals.worker_process_init.connect(lambda sender, **_: _start_child(settings, sender), weak=False)
    signals.worker_process_shutdown.connect(lambda **_: _end_child(), weak=False)


# --- the parent ---


def _turn() -> None:
    _turned_at[0] = time.monotonic()


class LoopWatch(bootsteps.StartStopStep):  # type: ignore[misc]
    """Notes each second that the parent's loop turns, and which queues it takes from.

    By new timers after each loss of the broker: those of before end with it.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Begin to note."""
        _consumer[:] = [parent]
        parent.back()
        _turn()
        watch.hold_back(parent)  # the loop, which comes next, would take a message before the first turn
        parent.timer.call_repeatedly(1.0, _turn)
        parent.timer.call_repeatedly(1.0, watch.turn, (parent, _pulse))


def _feed(settings: Settings) -> None:
    """Feed systemd's watchdog while the parent's loop turns and no child hangs with work in hand."""
    stall = stall_seconds(settings)
    complained = False
    while True:
        # With a condemned GPU a child may hang for ever: a restart would only forget why, and the shard's
        # lease runs out by itself.
        hangs = _pulse.stalled(stall) and not _pulse.condemned
        reason = "a child hangs" if hangs else "the parent's loop stands still" if _stuck() else ""
        if not reason:
            notify("WATCHDOG=1")
        elif not complained:
            event(log, "the watchdog is fed no more", level=logging.ERROR, reason=reason)
        complained = bool(reason)
        time.sleep(_FEED_SECONDS)


def _stuck() -> bool:
    """Return whether the loop does not turn though it should.

    While Redis is away or the service drains, the loop rests: neither is a reason to be restarted.
    """
    if not _consumer or _pulse.draining or _consumer[0].away or _consumer[0].connection is None:
        return False
    return time.monotonic() - _turned_at[0] > _LOOP_SECONDS


class ShardRequest(Request):  # type: ignore[misc]
    """A request for a shard, in the parent: when the child is lost with it, its lease is freed at once."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Count the crash before Celery puts the message back."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if not return_ok:  # the child did not answer: it is gone
            record_crash(int(self.args[0]), str(error))
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)


def record_crash(shard: int, reason: str) -> None:
    """Free the lease that a dead child noted and count the crash; the note stays if the database is away."""
    from semantik.celery_app import settings

    note = notes.read(settings, shard)
    if note is None or notes.alive(note.pid):
        # Without a note the child had claimed nothing: whose shard it is stands in the row alone.
        job = note.job if note else _job_of(settings, shard)
        event(log, "child lost", level=logging.WARNING, job=job, shard=shard, reason=reason)
        return

    try:
        retry(partial(_count_crash, settings, note, reason), seconds=_CRASH_SECONDS)
    except Exception as error:
        if not passes(error):
            raise
        event(log, "crash not recorded yet", level=logging.WARNING, job=note.job, shard=shard, error=error)
        return
    notes.remove(settings, shard)


def _settle_crashes(settings: Settings) -> None:
    """In a new child: count the crash of the one before, where its parent could not, as soon as can be.

    Whoever takes the shard's message next may be another slot, which has no note of it. The fence lets a
    crash be counted once, whoever comes first. Notes of an earlier parent are of a service that was killed
    as a whole: their leases run out.
    """
    for shard in notes.shards(settings):
        note = notes.read(settings, shard)
        if note is None or notes.alive(note.pid):
            continue
        if note.parent == os.getppid():
            retry(partial(_count_crash, settings, note, "the process died"), seconds=math.inf)
        if notes.read(settings, shard) == note:  # not this child's own by now
            notes.remove(settings, shard)


def _count_crash(settings: Settings, note: notes.Note, reason: str) -> None:
    from semantik.shards import crashed

    with connect(settings, application_name="semantik crash") as connection:
        crashed(connection, note.shard, note.fence, note.documents, limit=settings.crash_limit, reason=reason)


def _job_of(settings: Settings, shard: int) -> str | None:
    """Return the job of a shard, for the log; None where the database does not say."""
    try:
        with connect(settings, application_name="semantik crash") as connection:
            row = connection.execute(query("shards.state"), {"shard": shard}).fetchone()
    except (DatabaseUnavailable, psycopg.Error):
        return None
    return None if row is None else str(row[2])


# --- the child ---


def _start_child(settings: Settings, node: str) -> None:
    """Set this child up: model, slot, keeper. A model that cannot be loaded ends the service."""
    global _child
    index = getattr(billiard.current_process(), "index", 0)
    _child = Child(settings, settings.role)
    try:
        if settings.role == "planner":
            _start_planner(_child, node, index)
        else:
            _start_model(_child, index)
    except Exception as error:
        known = isinstance(error, SemantikError)  # its sentence says all
        event(log, "cannot start", level=logging.CRITICAL, traceback=not known, reason=error)
        if _pulse.condemned:
            return  # the service stays and says why: ended, it would be started again as if told to go on
        notify(f"STATUS=cannot start: {' '.join(str(error).split())[:200]}")
        # Celery swallows what is raised here and would start child after child: end the parent instead.
        _pulse.fail(EX_CONFIG if isinstance(error, SettingsError) else 1)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(1.0)
        os._exit(1)
    notify("READY=1\nSTATUS=ready")


def _start_planner(child: Child, node: str, index: int) -> None:
    settings = child.settings

    def beat(connection: Connection) -> None:
        heartbeat(connection, "planner", settings.host)

    child.keeper = Keeper(settings, beat, "semantik planner keeper")
    child.keeper.start()
    child.planner = Planner(settings, node, child.keeper, _pulse.child(index), lambda: _pulse.draining)


def _start_model(child: Child, index: int) -> None:
    from semantik.model import load_model
    from semantik.runner import Runner

    settings = child.settings
    pulse = _pulse.child(index)
    if settings.role == "worker":
        child.slot = Slot(settings, _pulse)
        child.keeper = Keeper(settings, child.slot.beat, f"semantik slot {settings.slot}")
        child.keeper.start()
        threading.Thread(target=_settle_crashes, args=(settings,), name="crashes", daemon=True).start()
    started = time.monotonic()
    child.model = load_model(settings)
    event(
        log, "model loaded", model=child.model.name, revision=child.model.revision[:8],
        device=child.model.device, precision=child.model.precision, gpu=settings.gpu_name or None,
        seconds=time.monotonic() - started,
    )  # fmt: skip
    if child.slot is not None and child.keeper is not None:
        slot = child.slot
        slot.device = " ".join(word for word in (child.model.device, settings.gpu_name) if word)
        slot.model, slot.model_revision, slot.ready = child.model.name, child.model.revision, True
        child.runner = Runner(settings, child.model, slot, child.keeper, _pulse, pulse)
        child.keeper.nudge()


def _end_child() -> None:
    """Say that the slot takes no more work."""
    if _child is None or _child.slot is None or _child.keeper is None:
        return
    _child.keeper.end()
    _child.slot.ended = True
    try:
        with connect(_child.settings, autocommit=True, application_name="semantik slot") as connection:
            _child.slot.beat(connection)
    except DatabaseUnavailable as error:
        event(log, "slot not signed off", level=logging.WARNING, slot=_child.settings.slot, error=error)
