"""Celery's events, sent without waiting for Redis: they tell Flower what goes on, and must not hold it up.

Celery tries to send a heartbeat until it succeeds, in the loop that also takes messages, results and signals:
while Redis is cut off a worker's parent does nothing else, and where connecting anew takes several attempts
it sees a message only when they are over.
"""

from __future__ import annotations

import time
from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher

#: Seconds without an attempt after one that failed: each takes as long as Redis' time-outs.
QUIET_SECONDS = 10.0
#: Events that are kept while Redis is away; the oldest are dropped.
KEPT = 10_000
HEARTBEAT = "worker.heartbeat"


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Tries each event once. What could not be sent follows the next one that could, but for heartbeats."""

    _quiet_until = 0.0

    def _publish(self, event: Any, producer: Any, routing_key: str, *_: Any, **__: Any) -> None:
        """Send the event, or keep it; called with the dispatcher's lock held."""
        if not self.buffer_while_offline:
            super()._publish(event, producer, routing_key)
            return
        if time.monotonic() < self._quiet_until:
            self._keep(event, routing_key)
            return
        waiting = list(self._outbound_buffer)
        self._outbound_buffer.clear()
        # What waits is older. One that fails is kept by Celery.
        for number, (kept, key) in enumerate([*waiting, (event, routing_key)]):
            super()._publish(kept, producer, key)
            if self._outbound_buffer:
                self._quiet_until = time.monotonic() + QUIET_SECONDS
                self._outbound_buffer.clear()
                for late in [*waiting, (event, routing_key)][number:]:
                    self._keep(*late)
                return

    def _keep(self, event: Any, routing_key: str) -> None:
        if routing_key == HEARTBEAT:
            return
        self._outbound_buffer.append((event, routing_key))
        while len(self._outbound_buffer) > KEPT:
            self._outbound_buffer.popleft()


class Events(CeleryEvents):  # type: ignore[misc]
    """What the application takes for Celery's `app.events`."""

    dispatcher_cls = "semantik.events:Dispatcher"
