"""Celery's consumer, for a Redis that goes away, comes back, or is full: no worker ends or idles for long.

Celery itself waits up to 30 s more between two attempts the longer Redis is away, and ends the worker when
Redis answers with an error, as it does to every write once its memory is full. And a worker whose
acknowledgement meets a Redis that is away counts the message as still in hand, for ever: with a prefetch of
one it would take no other.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import consumer
from celery.worker.state import maybe_shutdown
from kombu.transport import redis as transport
from kombu.transport import virtual

from semantik.broker import describe
from semantik.logs import event

log = logging.getLogger("semantik.consumer")

#: Seconds between two attempts to connect: at first, added with each, at most.
FIRST_PAUSE, PAUSE_STEP, LONGEST_PAUSE = 1.0, 1.0, 5.0
#: Seconds until Redis is asked again after it has refused a command.
REFUSED_PAUSE = 5.0


class QoS(transport.QoS):
    """Lets go of a message that it was told to, also where Redis does not hear of it.

    What stays in Redis of such a message is removed by the scheduler, by what the database says of its shard.
    """

    def ack(self, delivery_tag: str) -> None:
        """Forget the message, in Redis first; raises what Redis' client does."""
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except Exception:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back, or forget it; raises what Redis' client does."""
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
        except Exception:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise


# kombu has no setting for it.
transport.Channel.QoS = QoS


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Comes back within seconds; says once that Redis is away, and once that it is back."""

    #: Whether the loop rests because of Redis.
    away = False

    def back(self) -> None:
        """Note that messages are taken again."""
        if self.away:
            event(log, "redis back")
        self.away = False

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, for as long as it takes."""
        conn.ensure_connection(
            lambda error, _seconds: self._gone(error),
            interval_start=FIRST_PAUSE,
            interval_step=PAUSE_STEP,
            interval_max=LONGEST_PAUSE - FIRST_PAUSE,  # kombu adds the start to it
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        return conn

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Say so."""
        self._gone(exc)
        self._rest(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Say so, and drop what belongs to the connection."""
        self._gone(exc)
        with warnings.catch_warnings():
            # Tasks outlive a lost connection here on purpose; Celery would say so at each loss.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        self._rest(exc)

    def _gone(self, error: BaseException) -> None:
        if not self.away:
            event(log, describe(error), level=logging.WARNING, error=error)
        self.away = True

    def _rest(self, error: Exception) -> None:
        """Wait where Redis answers with an error: connecting again at once would meet the same."""
        deadline = time.monotonic() + REFUSED_PAUSE
        while isinstance(error, self.channel_errors) and time.monotonic() < deadline:
            maybe_shutdown()
            time.sleep(0.5)


def is_not_repeated(record: logging.LogRecord) -> bool:
    """Drop Celery's lines of each loss and attempt, several lines each: `Consumer` says it once."""
    said = (record.msg, *(record.args if isinstance(record.args, tuple) else ()))
    return consumer.CONNECTION_ERROR not in said and not any(
        isinstance(word, str) and word.startswith(consumer.CONNECTION_RETRY) for word in said
    )
