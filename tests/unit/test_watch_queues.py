"""Which queues a worker consumes while its GPU is in trouble: Celery's consumer, a broker in memory."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.worker.consumer.tasks import Tasks
from kombu import Connection
from kombu.asynchronous.timer import Timer
from nvml_driver import Driver

from semantik import watch
from semantik.consumer import Consumer
from semantik.pulse import Pulse
from semantik.watch import Watch


class Worker:
    """Celery's own consumer of a worker, over kombu's broker in memory; without a pool."""

    def __init__(self) -> None:
        self.app = Celery("test", broker="memory://", set_as_current=False)
        self.app.conf.update(task_default_queue="ingest", worker_enable_remote_control=False)
        self.app.amqp.queues.select(["embed", "slot.gpu1.0"])
        self.got: list[Any] = []
        self.consumer = Consumer(
            self.got.append, app=self.app, hostname="worker0@gpu1", initial_prefetch_count=0,
            pool=Mock(num_processes=1, is_green=False), timer=Timer(),
            controller=Mock(),
        )  # fmt: skip
        self.connect()

    def connect(self) -> None:
        """Connect as Celery does at the start and after each loss of the broker."""
        self.consumer.connection = Connection("memory://")
        Tasks(self.consumer).start(self.consumer)
        self.consumer.task_consumer.on_message = lambda message: (
            self.got.append(message.payload),
            message.ack(),
        )
        self.consumer.task_consumer.consume()

    def takes(self) -> list[str]:
        return sorted(queue.name for queue in self.consumer.task_consumer.queues)

    def send(self, queue: str) -> None:
        with self.app.connection_for_write() as connection:
            connection.SimpleQueue(queue).put(queue, serializer="json")

    def receive(self) -> list[str]:
        """Return the queues of what comes within a moment."""
        self.got.clear()
        with pytest.raises(socket.timeout):
            while True:
                self.consumer.connection.drain_events(timeout=0.2)
        return sorted(self.got)


@pytest.fixture
def a_worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    for queue in ("embed", "slot.gpu1.0"):
        worker.consumer.connection.default_channel.queue_purge(queue)


def test_shards_are_not_taken_while_the_gpu_rests(
    a_worker: Worker, watched: Watch, gpu_pulse: Pulse, driver: Driver, gpu_clock: list[float]
) -> None:
    watch.turn(a_worker.consumer, gpu_pulse)
    assert a_worker.takes() == ["embed", "slot.gpu1.0"]

    driver.say(reasons="0x80")
    watched.look()
    watch.turn(a_worker.consumer, gpu_pulse)
    watch.turn(a_worker.consumer, gpu_pulse)
    assert a_worker.takes() == ["slot.gpu1.0"]
    a_worker.send("embed")
    a_worker.send("slot.gpu1.0")
    assert a_worker.receive() == ["slot.gpu1.0"], "a check reaches it, a shard does not"

    driver.say(reasons="0x0")
    gpu_clock[0] += 61
    watched.look()
    watch.turn(a_worker.consumer, gpu_pulse)
    watch.turn(a_worker.consumer, gpu_pulse)
    assert a_worker.takes() == ["embed", "slot.gpu1.0"]
    assert a_worker.receive() == ["embed"], "what waited meanwhile"


def test_the_choice_outlives_the_connection(
    a_worker: Worker, watched: Watch, gpu_pulse: Pulse, driver: Driver
) -> None:
    driver.say(lost="1")
    watched.look()
    watch.turn(a_worker.consumer, gpu_pulse)
    a_worker.consumer.connection.close()
    a_worker.consumer.connection = None
    watch.turn(a_worker.consumer, gpu_pulse)  # in between there is nothing to turn
    a_worker.connect()
    assert a_worker.takes() == ["slot.gpu1.0"]
    watch.turn(a_worker.consumer, gpu_pulse)
    a_worker.send("embed")
    assert a_worker.receive() == []


def test_trouble_that_comes_while_the_broker_is_away(
    a_worker: Worker, watched: Watch, gpu_pulse: Pulse, driver: Driver
) -> None:
    a_worker.consumer.connection.close()
    a_worker.consumer.connection = None
    driver.say(lost="1")
    watched.look()
    watch.turn(a_worker.consumer, gpu_pulse)
    a_worker.connect()
    watch.turn(a_worker.consumer, gpu_pulse)
    assert a_worker.takes() == ["slot.gpu1.0"]


def test_a_service_that_stops_takes_nothing_again(
    a_worker: Worker, watched: Watch, gpu_pulse: Pulse, driver: Driver, gpu_clock: list[float]
) -> None:
    driver.say(reasons="0x80")
    watched.look()
    watch.turn(a_worker.consumer, gpu_pulse)
    driver.say(reasons="0x0")
    gpu_clock[0] += 61
    watched.look()
    gpu_pulse.drain(60)
    watch.turn(a_worker.consumer, gpu_pulse)
    assert a_worker.takes() == ["slot.gpu1.0"]


def test_without_a_watch_the_queues_are_left_alone(a_worker: Worker, gpu_pulse: Pulse) -> None:
    a_worker.consumer.cancel_task_queue("embed")  # as `celery control` does
    watch.turn(a_worker.consumer, gpu_pulse)
    assert a_worker.takes() == ["slot.gpu1.0"]
