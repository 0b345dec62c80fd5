"""What dead workers leave in Redis, and who takes it away: the scheduler, by what the database says.

kombu keeps each message that a worker has taken in a hash (`unacked`) with a sorted set as index, until the
worker acknowledges it. Of a worker that was killed, or whose connection broke, it stays there for the
visibility time-out, hours, and then comes back as a message for a shard that was done long ago.

A question waits in a queue of its own kind until somebody takes it. Where nobody does, as in the queue of a
slot that is no more, it stays for ever, though it has expired: only who takes a message looks at that.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import redis

from semantik.broker import slot_queue
from semantik.database import Connection, query
from semantik.jobs import PLAN_TASK
from semantik.logs import event

log = logging.getLogger("semantik.housekeeping")

SHARD_TASK = "semantik.tasks.embed_shard_task"
#: The queue of the questions that are to be embedded.
QUESTIONS = "query"
#: Messages looked at in one sweep, the oldest first. Live slots hold one or two each.
MOST = 1000
#: By this much a sender's clock may be behind before what it sent counts as expired.
SKEW = timedelta(hours=1)


@dataclass(frozen=True)
class Held:
    """A message that a worker took and has not acknowledged."""

    tag: str
    task: str
    subject: str  # the shard's or the job's id
    expires: datetime | None


@dataclass
class Sweeper:
    """Removes taken messages that stand for nothing any more.

    Removing one that a worker still holds is harmless: its acknowledgement finds nothing to remove, and its
    shard, should the worker die with it, is sent again by its row. So neither a lock nor a clock is needed.
    What is found over is removed at the next sweep only, since its worker may be about to acknowledge it.
    """

    over: set[str] = field(default_factory=set)

    def sweep(self, connection: Connection, broker: Any, slots: Iterable[str] = ()) -> int:
        """Sweep once over the broker's connection; return how many messages were removed.

        `slots`: those whose queues are looked at beside the ones of the slots that the database knows.
        """
        known = {slot for (slot,) in connection.execute(query("scheduler.slots")).fetchall()} | set(slots)
        queues = [QUESTIONS, *(slot_queue(slot) for slot in sorted(known))]
        return self._sweep_taken(connection, broker) + sweep_expired(broker, queues)

    def _sweep_taken(self, connection: Connection, broker: Any) -> int:
        channel = broker.default_channel
        client = channel.client
        tags = [_text(tag) for tag in client.zrange(channel.unacked_index_key, 0, MOST - 1)]
        if not tags:
            self.over = set()
            return 0
        with client.pipeline(transaction=False) as pipe:
            for tag in tags:
                pipe.hget(channel.unacked_key, tag)
            bodies = pipe.execute()
        over = over_in(connection, [held(tag, body) for tag, body in zip(tags, bodies, strict=True)])
        gone = over & self.over
        if gone:
            with client.pipeline() as pipe:  # as kombu acknowledges
                for tag in gone:
                    pipe.zrem(channel.unacked_index_key, tag)
                    pipe.hdel(channel.unacked_key, tag)
                pipe.execute()
            event(log, "removed messages that workers left behind", messages=len(gone))
        self.over = over - gone
        return len(gone)


def sweep_expired(broker: Any, queues: Sequence[str]) -> int:
    """Remove from these queues the messages whose time is over; return how many there were."""
    channel = broker.default_channel
    client = channel.client
    # kombu puts the prefix before the keys of those commands alone that it uses itself.
    prefix = channel.global_keyprefix or ""
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.lrange(f"{prefix}{queue}", -1, -1)  # the oldest, which the next worker would take
        heads = pipe.execute()
    gone = 0
    for queue, head in zip(queues, heads, strict=True):
        if head and expired(head[0]):
            gone += _take_expired(client, prefix, queue)
    if gone:
        event(log, "removed messages that nobody took in time", messages=gone)
    return gone


def _take_expired(client: Any, prefix: str, queue: str) -> int:
    gone = 0
    with client.pipeline() as pipe:
        while gone < MOST:
            pipe.watch(queue)
            head = pipe.lrange(f"{prefix}{queue}", -1, -1)
            if not head or not expired(head[0]):
                break
            pipe.multi()
            pipe.rpop(queue)
            try:
                pipe.execute()
            except redis.exceptions.WatchError:
                break  # somebody takes messages after all
            gone += 1
    return gone


def expired(body: bytes) -> bool:
    """Return whether a message that waits has expired for certain."""
    try:
        text = json.loads(body)["headers"].get("expires")
        return text is not None and _over(datetime.fromisoformat(text))
    except (TypeError, ValueError, KeyError, AttributeError):
        return False


def _over(expires: datetime) -> bool:
    return expires.tzinfo is not None and expires + SKEW < datetime.now(UTC)


def held(tag: str, body: bytes | None) -> Held:
    """Read one entry of `unacked`. One that is gone, or of another program, has no task."""
    try:
        message = json.loads(body or b"null")[0]
        headers: Mapping[str, Any] = message["headers"]
        arguments = json.loads(base64.b64decode(message["body"]))[0]
        expires = datetime.fromisoformat(headers["expires"]) if headers.get("expires") else None
        return Held(tag, str(headers["task"]), str(arguments[0]) if arguments else "", expires)
    except (TypeError, ValueError, KeyError, IndexError, binascii.Error):
        return Held(tag, "" if body is None else "unknown", "", None)


def over_in(connection: Connection, messages: Iterable[Held]) -> set[str]:
    """Return the tags of the messages whose shard, job or time is over. Users' own tasks are left alone."""
    messages = list(messages)
    shards = [int(m.subject) for m in messages if m.task == SHARD_TASK and m.subject.isdecimal()]
    plans = [m.subject for m in messages if m.task == PLAN_TASK]
    values = {"shards": shards, "jobs": plans}
    wanted = {(kind, key) for kind, key in connection.execute(query("scheduler.wanted"), values).fetchall()}

    def is_over(message: Held) -> bool:
        if message.task == SHARD_TASK:
            return ("shard", message.subject) not in wanted
        if message.task == PLAN_TASK:
            return ("job", message.subject) not in wanted
        if message.expires is not None:
            return _over(message.expires)
        return not message.task  # its index outlived it

    return {message.tag for message in messages if is_over(message)}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
