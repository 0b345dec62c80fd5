"""Events of a worker whose Redis does not answer: one attempt, and nothing but heartbeats is lost."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from semantik import events


class Producer:
    """Takes events, or fails as one does whose Redis is away."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0
        self.sent: list[str] = []
        self.patient = False

    def publish(self, event: dict[str, Any], *, retry: bool, **_: Any) -> None:
        self.asked += 1
        self.patient |= retry
        if self.away:
            raise OperationalError("cut off")
        self.sent.append(event["type"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def dispatcher() -> Any:
    app = Celery("events", broker="memory://", events="semantik.events:Events", set_as_current=False)
    found = app.events.Dispatcher(app.connection_for_write(), hostname="here", buffer_while_offline=True)
    assert isinstance(found, events.Dispatcher)
    found.producer = Producer()
    return found


def test_a_heartbeat_is_tried_once_whatever_celery_asks_for(dispatcher: Any, clock: list[float]) -> None:
    dispatcher.producer.away = True
    for _ in range(5):
        dispatcher.send("worker-heartbeat", retry=True)
        clock[0] += 1
    assert (dispatcher.producer.asked, dispatcher.producer.patient) == (1, False)
    clock[0] += events.QUIET_SECONDS
    dispatcher.producer.away = False
    dispatcher.send("worker-heartbeat", retry=True)
    assert dispatcher.producer.sent == ["worker-heartbeat"], "the old ones say nothing any more"


def test_what_was_kept_follows_in_its_order(dispatcher: Any, clock: list[float]) -> None:
    dispatcher.send("task-received")
    dispatcher.producer.away = True
    dispatcher.send("task-started")
    dispatcher.send("task-failed")
    dispatcher.producer.away = False
    dispatcher.send("task-retried")
    assert dispatcher.producer.sent == ["task-received"], "quiet for a while"
    clock[0] += events.QUIET_SECONDS
    dispatcher.send("task-succeeded")
    assert dispatcher.producer.sent[1:] == ["task-started", "task-failed", "task-retried", "task-succeeded"]


def test_redis_that_goes_while_the_rest_follows_loses_none_of_it(dispatcher: Any, clock: list[float]) -> None:
    producer = dispatcher.producer
    producer.away = True
    for name in ("task-started", "task-failed", "task-retried"):
        dispatcher.send(name)
    producer.away = False
    clock[0] += events.QUIET_SECONDS
    publish = producer.publish

    def goes_again(event: dict[str, Any], **options: Any) -> None:
        producer.away = len(producer.sent) == 1
        publish(event, **options)

    producer.publish = goes_again
    dispatcher.send("task-succeeded")
    assert producer.sent == ["task-started"]
    producer.publish, producer.away = publish, False
    clock[0] += events.QUIET_SECONDS
    dispatcher.send("worker-heartbeat")
    assert producer.sent[1:] == ["task-failed", "task-retried", "task-succeeded", "worker-heartbeat"]


def test_a_redis_that_stays_away_does_not_fill_the_memory(
    dispatcher: Any, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEPT", 3)
    dispatcher.producer.away = True
    for number in range(6):
        dispatcher.send(f"task-{number}")
    dispatcher.producer.away = False
    clock[0] += events.QUIET_SECONDS
    dispatcher.send("task-last")
    assert dispatcher.producer.sent == ["task-3", "task-4", "task-5", "task-last"]
