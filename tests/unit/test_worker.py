"""What the parent and the child of a worker tell each other, and what they leave behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from semantik import notes, pulse, worker
from semantik.logs import event
from semantik.pulse import Pulse
from semantik.settings import Settings, load
from semantik.slots import Slot


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(
        {
            "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
            "SEMANTIK_DATABASE_URL": "postgresql://127.0.0.1:1/none",
            "CREDENTIALS_DIRECTORY": "/nonexistent",
            "SEMANTIK_SLOT": "gpu1:0",
            "RUNTIME_DIRECTORY": f"{tmp_path / 'run'}:/elsewhere",
        }
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    yield now


def test_a_child_that_holds_work_and_stands_still_is_stalled(clock: list[float]) -> None:
    shared = Pulse()
    child = shared.child(3)
    clock[0] += 500
    assert not shared.stalled(60), "an idle child may stand still"
    child.work()
    clock[0] += 59
    assert not shared.stalled(60)
    child.advance()
    clock[0] += 59
    assert not shared.stalled(60)
    clock[0] += 2
    assert shared.stalled(60)
    child.rest()
    assert not shared.stalled(60)


def test_a_new_child_starts_at_rest(clock: list[float]) -> None:
    shared = Pulse()
    shared.child(0).work()
    clock[0] += 100
    shared.child(0)
    assert not shared.stalled(60)


def test_draining_gives_shards_their_time(clock: list[float]) -> None:
    shared = Pulse()
    assert not shared.draining and not shared.drained
    shared.drain(60)
    assert shared.draining and not shared.drained
    clock[0] += 60
    assert shared.drained


def test_what_a_child_writes_its_parent_reads() -> None:
    shared = Pulse()
    pid = os.fork()
    if pid == 0:
        shared.fail(78)
        os._exit(0)
    os.waitpid(pid, 0)
    assert shared.failed == 78


class Consumer:
    connection: object = None
    away = False


def test_a_loop_that_stands_still_counts_only_while_it_is_connected(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = Consumer()
    monkeypatch.setattr(worker, "_consumer", [])
    monkeypatch.setattr(worker, "_turned_at", [clock[0]])
    monkeypatch.setattr(worker, "_pulse", Pulse())
    clock[0] += 1000
    assert not worker._stuck(), "still starting"
    worker._consumer.append(consumer)
    assert not worker._stuck(), "Redis is away"
    consumer.connection = object()
    assert worker._stuck()
    consumer.away = True
    assert not worker._stuck(), "half connected when Redis went away"
    consumer.away = False
    worker._turn()
    assert not worker._stuck()
    clock[0] += 1000
    worker._pulse.drain(60)
    assert not worker._stuck(), "the service stops"


def test_a_note_says_who_held_what(settings: Settings) -> None:
    assert notes.read(settings, 5) is None
    notes.write(settings, 5, 2, [11, 12])
    note = notes.read(settings, 5)
    assert note == notes.Note(5, 2, os.getpid(), os.getppid(), (11, 12))
    assert notes.directory(settings) == Path(settings.runtime_dir.partition(":")[0])
    assert oct(notes.directory(settings).stat().st_mode)[-3:] == "700"
    notes.remove(settings, 5)
    notes.remove(settings, 5)
    assert notes.read(settings, 5) is None
    assert list(notes.directory(settings).iterdir()) == []


def test_a_process_is_alive_until_it_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert notes.alive(process.pid)
        process.kill()
    assert not notes.alive(process.pid)


def test_a_slot_says_what_it_does(settings: Settings) -> None:
    slot = Slot(settings, Pulse())
    assert slot.state == "starting"
    slot.ready = True
    assert slot.state == "idle"
    slot.busy = True
    assert slot.state == "busy"
    slot.pulse.drain(5)
    assert slot.state == "draining"
    slot.ended = True
    assert slot.state == "stopped"


def test_a_slot_measures_shards_that_say_something(settings: Settings) -> None:
    slot = Slot(settings, Pulse())
    slot.measured(1000, 500, 0.5)
    slot.measured(1000, 0, 10.0)
    assert slot.bytes_per_second is None
    slot.measured(1000, 500, 10.0)
    assert (slot.bytes_per_second, slot.tokens_per_second) == (100, 50)
    slot.measured(2000, 1000, 10.0)
    assert slot.bytes_per_second == pytest.approx(130)


def test_a_role_that_is_none_is_refused(settings: Settings) -> None:
    from celery import Celery

    from semantik.exceptions import SettingsError

    with pytest.raises(SettingsError, match="SEMANTIK_ROLE='wroker'"):
        worker.install(Celery(), replace(settings, role="wroker"))
    with pytest.raises(SettingsError, match="SEMANTIK_SLOT"):
        worker.install(Celery(), replace(settings, role="worker", slot=""))
    with pytest.raises(SettingsError, match="SEMANTIK_ROLE is not set"):
        worker.current()


def test_the_parent_imports_no_torch() -> None:
    code = (
        "import sys; import semantik.worker, semantik.shards, semantik.planner; print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


def test_an_event_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        event(
            logging.getLogger("x"),
            "claimed",
            job="a-b",
            shard=7,
            error='two\n"lines"',
            none=None,
            seconds=1.5,
        )
    assert caplog.messages == ["claimed job=a-b shard=7 error=\"two 'lines'\" seconds=1.5"]


def test_a_child_that_waits_for_the_database_is_not_stalled(clock: list[float]) -> None:
    shared = Pulse()
    child = shared.child(0)
    child.work()
    child.wait()
    clock[0] += 10_000
    assert not shared.stalled(60)
    child.advance()
    clock[0] += 61
    assert shared.stalled(60)


def test_an_event_comes_before_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        event(
            logging.getLogger("semantik.test"),
            "failed",
            level=logging.ERROR,
            traceback=True,
            job="j",
            shard=3,
            error=error,
        )
    (record,) = caplog.records
    assert record.getMessage() == 'failed job=j shard=3 error="two lines"'
    assert record.exc_info is not None and record.exc_info[0] is ValueError


def test_a_lost_child_is_told_with_job_and_shard(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "semantik.celery_app", SimpleNamespace(settings=settings))
    caplog.set_level(logging.INFO)
    notes.write(settings, 5, 1, job="a-job")
    worker.record_crash(5, "signal 9")
    assert "child lost job=a-job shard=5" in caplog.text
    monkeypatch.setattr(notes, "alive", lambda _pid: False)
    monkeypatch.setattr(worker, "_CRASH_SECONDS", 0.1)
    worker.record_crash(5, "signal 9")
    assert "crash not recorded yet job=a-job shard=5" in caplog.text


def test_a_child_that_cannot_start_on_a_condemned_gpu_ends_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    shared = Pulse()
    monkeypatch.setattr(worker, "_pulse", shared)
    monkeypatch.setattr(worker, "_child", None)
    monkeypatch.setattr(worker, "_start_model", broken)
    monkeypatch.setattr(worker.os, "kill", lambda *_: pytest.fail("the service would be started anew"))
    shared.condemn()
    worker._start_child(replace(settings, role="worker"), "worker0@gpu1")
    assert "cannot start" in caplog.text
    assert shared.failed == 0
