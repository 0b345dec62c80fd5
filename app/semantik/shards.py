"""A shard's row: claimed, renewed, given back, counted as crashed. Each change is guarded by state and fence.

The row is the truth. A message that comes twice, too late or to the wrong slot meets a guard and changes
nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from semantik.database import WAKE, Connection, query
from semantik.logs import event

log = logging.getLogger("semantik.shards")

#: How the reason of a document begins that crashed its worker once too often.
QUARANTINED = "quarantined: "
#: How that of a document begins on which leases ran out once too often.
GIVEN_UP = "given up: "


@dataclass(frozen=True)
class Claim:
    """A shard that this slot holds under `fence`."""

    shard: int
    job: str
    fence: int
    attempt: int
    documents: int
    bytes: int
    root: str
    collection: int
    dim: int
    chunk_tokens: int
    chunk_overlap: int


@dataclass
class ShardLease:
    """A claim with its progress, as renewals carry it."""

    claim: Claim
    lease_seconds: float
    documents_done: int = 0
    chunks: int = 0
    tokens: int = 0
    truncated_tokens: int = 0
    advanced_at: float = field(default_factory=time.monotonic)
    lost: threading.Event = field(default_factory=threading.Event)
    writing: int | None = None  # the document whose row is on its way to the database
    unnoted: bool = False  # whether the note of what is in flight is older than it should be

    @property
    def job_id(self) -> str:
        """The job, whose cancelling ends the lease."""
        return self.claim.job

    def counts(self) -> dict[str, int]:
        """The progress as the shard's row has it."""
        return {
            "documents_done": self.documents_done,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "truncated_tokens": self.truncated_tokens,
        }

    def renew(self, connection: Connection) -> bool:
        """Extend the lease; the progress goes with it."""
        values = {
            "shard": self.claim.shard,
            "fence": self.claim.fence,
            "lease": self.lease_seconds,
            **self.counts(),
        }
        return connection.execute(query("shards.renew"), values).rowcount == 1


def claim(
    connection: Connection, shard: int, *, slot: str, lease_seconds: float, model_revision: str
) -> Claim | None:
    """Take the shard for `slot`; None when it is done, cancelled or under another slot's lease. Commits."""
    values = {"shard": shard, "slot": slot, "lease": lease_seconds, "model_revision": model_revision}
    connection.execute(query("shards.end_own"), values)
    row = connection.execute(query("shards.claim"), values).fetchone()
    connection.commit()
    return None if row is None else Claim(*row)


def release(connection: Connection, shard: int, fence: int, reason: str | None = None) -> bool:
    """Give the shard back untouched, for any slot to take; its row keeps the reason. Commits."""
    values = {"shard": shard, "fence": fence, "reason": reason}
    given = connection.execute(query("shards.give_back"), values).rowcount
    connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
    connection.commit()
    return given == 1


def crashed(
    connection: Connection, shard: int, fence: int, documents: Sequence[int], *, limit: int, reason: str
) -> str | None:
    """Free the lease of a worker that died and count the crash; None when the fence is another's. Commits.

    After `limit` crashes the `documents` that were in flight get a shard each, which one more crash ends, and
    the rest stays one shard. Without a note of what was in flight, every document is set apart.
    """
    with connection.transaction():
        row = connection.execute(
            query("shards.crashed"), {"shard": shard, "fence": fence, "reason": reason}
        ).fetchone()
        if row is None:
            return None
        job, held, crashes = row
        if held == 1 and crashes > limit:
            quarantined = f"{QUARANTINED}its worker crashed {crashes} times ({reason})"
            connection.execute(query("shards.fail_documents"), {"shard": shard, "reason": quarantined})
            connection.execute(query("shards.fail"), {"shard": shard, "reason": quarantined})
            verdict = "quarantined"
        elif held > 1 and crashes >= limit:
            suspects = documents or [
                row[0] for row in connection.execute(query("shards.sources"), {"shard": shard}).fetchall()
            ]
            for document in suspects:
                values = {"shard": shard, "document": document, "crashes": crashes, "reason": reason}
                connection.execute(query("shards.set_apart"), values)
            connection.execute(query("shards.shrink"), {"shard": shard})
            verdict = f"set {len(suspects)} documents apart"
        else:
            verdict = "goes back"
        connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
    event(
        log, "crashed", level=logging.WARNING,
        job=job, shard=shard, crashes=crashes, reason=reason, verdict=verdict,
    )  # fmt: skip
    return verdict
