"""A shard's work: embed its documents and commit everything at once, or nothing."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg import sql

from semantik import health, jobs, notes, sources
from semantik.database import WAKE, Connection, backoff, connect, passes, query
from semantik.engine import Engine, Finished, Row, Source, Stopped
from semantik.exceptions import DeviceFull, FenceLost, ParserUnavailable, SettingsError
from semantik.leases import Keeper, database_works
from semantik.logs import event
from semantik.pulse import ChildPulse, Pulse
from semantik.settings import Settings
from semantik.shards import ShardLease, claim, crashed, release
from semantik.slots import Slot

if TYPE_CHECKING:
    from semantik.model import Model

log = logging.getLogger("semantik.runner")

#: What the worker exits with when its GPU can no longer be trusted.
EX_SOFTWARE = 70
#: Seconds that a slot without a parser, or without memory, waits before it takes a shard again.
IDLE_PAUSE = 10.0
#: Seconds that a slot whose GPU is condemned waits for its parent, which looks each second, to take no more.
TURN_PAUSE = 3.0
#: Seconds that a look at the GPU takes at most, where the driver answers at all.
_LOOK_SECONDS = 2.0


def load_sources(connection: Connection, shard: int) -> list[Source]:
    """Return the shard's documents that have no outcome yet."""
    rows = connection.execute(query("shards.sources"), {"shard": shard}).fetchall()
    # A document without chunks has nothing to skip to, whatever its hash.
    return [
        Source(key, uri, bytes(known) if known and chunks else None, size)
        for key, uri, known, size, chunks in rows
    ]


@dataclass
class Runner:
    """Runs shards in a worker's child, one at a time."""

    settings: Settings
    model: Model
    slot: Slot
    keeper: Keeper
    pulse: Pulse
    child: ChildPulse
    job: str | None = None  # of the shard at hand, once it was claimed
    fence: int | None = None  # of its last claim, until the work under it has ended

    def run(self, shard: int) -> None:
        """Do the shard, through outages of the database; leave it when it is another's or done."""
        self.child.work()
        self.slot.busy, self.job, self.fence = True, None, None
        try:
            for pause in backoff():
                try:
                    with connect(self.settings, application_name=f"semantik shard {shard}") as connection:
                        return self._attempt(connection, shard)
                except Exception as error:
                    if not passes(error):
                        raise
                    event(
                        log, "waits for the database", level=logging.WARNING,
                        job=self.job, shard=shard, error=error,
                    )  # fmt: skip
                if self.pulse.draining:
                    return None  # the reaper frees what this slot may still hold
                self.child.advance()
                time.sleep(pause)
        finally:
            self.keeper.release()
            self.slot.busy = False
            self.child.rest()

    def _attempt(self, connection: Connection, shard: int) -> None:
        if not self._settle_note(connection, shard):
            return
        self._settle_fence(connection, shard)
        held = claim(
            connection,
            shard,
            slot=self.settings.slot,
            lease_seconds=self.settings.lease_seconds,
            model_revision=self.model.revision,
        )
        if held is None:
            row = connection.execute(query("shards.state"), {"shard": shard}).fetchone()
            state, slot, job, _ = row or ("gone", None, None, None)
            event(log, "left", job=job, shard=shard, state=state, slot=slot)
            return
        self.job, self.fence = held.job, held.fence
        event(log, "claimed", job=held.job, shard=shard, attempt=held.attempt, documents=held.documents)
        lease = ShardLease(held, self.settings.lease_seconds)
        self.keeper.hold(lease)
        try:
            try:
                notes.write(self.settings, shard, held.fence, job=held.job)
            except (
                OSError
            ) as error:  # the disk that /run is on is full; without a note no crash could be told
                self._back(connection, lease, error)
                return
            self._work(connection, lease)
        finally:
            self.keeper.release()
            notes.remove(self.settings, shard)

    def _settle_fence(self, connection: Connection, shard: int) -> None:
        """Say what became of a claim whose session ended before its commit: frozen too long, or cut off."""
        if self.fence is None:
            return
        row = connection.execute(query("shards.state"), {"shard": shard}).fetchone()
        connection.rollback()
        if row is None or row[3] != self.fence:
            reason = f"fence {self.fence} is not the shard's any more, and its session was ended"
            event(log, "commit refused", level=logging.WARNING, job=self.job, shard=shard, reason=reason)
        self.fence = None

    def _settle_note(self, connection: Connection, shard: int) -> bool:
        """Count the crash of a child that died with the shard, if its parent could not; False if it lives."""
        note = notes.read(self.settings, shard)
        if note is None or note.pid == os.getpid():
            return True
        if note.parent == os.getppid():
            if notes.alive(note.pid):
                event(log, "left: a sibling has it", job=note.job, shard=shard, pid=note.pid)
                return False
            limit = self.settings.crash_limit
            crashed(connection, shard, note.fence, note.documents, limit=limit, reason="the process died")
        notes.remove(self.settings, shard)
        return True

    def _work(self, connection: Connection, lease: ShardLease) -> None:
        held, started = lease.claim, time.monotonic()
        engine: Engine | None = None
        try:
            engine = Engine(
                self.model,
                self.settings,
                chunk_tokens=held.chunk_tokens,
                chunk_overlap=held.chunk_overlap,
                opener=self._open,
            )
            finished, source_bytes = self._embed(connection, lease, engine)
            computed = lease.advanced_at  # the last vectors had come
            self._commit(connection, lease, finished, engine.stats.waits)
        except Stopped:
            connection.rollback()
            if lease.lost.is_set():
                event(
                    log,
                    "dropped: cancelled, or another's now",
                    level=logging.WARNING,
                    job=held.job,
                    shard=held.shard,
                )
            else:
                self.keeper.release()
                reason = (self.slot.trouble.reason or None) if self.pulse.condemned else None
                release(connection, held.shard, held.fence, reason)
                if self.pulse.condemned:
                    event(
                        log, "given back: the GPU is condemned", level=logging.ERROR,
                        job=held.job, shard=held.shard, reason=reason,
                    )  # fmt: skip
                    self._pause(TURN_PAUSE)
                else:
                    event(log, "given back: the service stops", job=held.job, shard=held.shard)
            return
        except (ParserUnavailable, DeviceFull, SettingsError) as error:
            # SettingsError: the collection's chunks are such as the model cannot make, no document's fault.
            self._back(connection, lease, error)
            return
        except psycopg.ProgrammingError as error:
            # A column, a function or a right that is not there: the schema is another release's. No document
            # can cause it.
            self._back(connection, lease, error)
            return
        except FenceLost as error:
            connection.rollback()
            event(log, "commit refused", level=logging.WARNING, job=held.job, shard=held.shard, reason=error)
            return
        except Exception as error:
            if passes(error):
                raise
            if self._condemned():
                self._back(connection, lease, error)  # no document is at fault
                return
            event(
                log, "shard failed", level=logging.ERROR, traceback=True,
                job=held.job, shard=held.shard, error=error,
            )  # fmt: skip
            inflight = engine.stats.inflight() if engine is not None else []
            self._failed(connection, lease, error, inflight if lease.writing is None else [lease.writing])
            return
        seconds = time.monotonic() - started
        self.slot.measured(source_bytes, lease.tokens, seconds)
        event(
            log, "committed", job=held.job, shard=held.shard, documents=len(finished), chunks=lease.chunks,
            tokens=lease.tokens, seconds=seconds, tokens_per_second=lease.tokens / max(seconds, 1e-3),
            write_seconds=engine.stats.waits.get("write"), commit_seconds=started + seconds - computed,
            oom_splits=engine.stats.oom_splits or None,
        )  # fmt: skip
        if state := jobs.close(connection, held.job):
            event(log, "job ended", job=held.job, state=state)

    def _embed(self, connection: Connection, lease: ShardLease, engine: Engine) -> tuple[list[Finished], int]:
        """Stream the rows into a temporary table; return what became of each document, and bytes embedded."""
        held = lease.claim
        documents = load_sources(connection, held.shard)
        sizes = {source.key: source.size or 0 for source in documents}
        register_vector(connection)
        connection.execute(query("shards.make_rows"))
        finished: list[Finished] = []
        rows: dict[int, int] = {}
        opened: set[int] = set()

        def pulled() -> Iterator[Source]:
            for source in documents:
                opened.add(source.key)
                yield source

        def should_stop() -> bool:
            # The batch that runs next; what was merely opened counts when no batch ever ran.
            self._note(lease, engine.stats.inflight() or sorted(opened))
            return lease.lost.is_set() or self.pulse.drained or self.pulse.condemned

        with connection.cursor().copy("COPY shard_rows FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "int4", "text", "text", "int4", "halfvec"])
            for item in engine.run(pulled(), should_stop):
                if isinstance(item, Row):
                    lease.writing = item.key
                    vector = HalfVector(item.vector)
                    copy.write_row((item.key, item.ordinal, item.text, item.place, item.token_count, vector))
                    lease.writing = None
                    rows[item.key] = rows.get(item.key, 0) + 1
                    lease.chunks += 1
                    lease.tokens += item.token_count
                elif isinstance(item, Finished):
                    finished.append(item)
                    opened.discard(item.key)
                    lease.documents_done += 1
                    lease.truncated_tokens += item.truncated_tokens
                self._advance(lease)
        _check(documents, finished, rows)
        embedded = sum(sizes[item.key] for item in finished if item.outcome == "embedded")
        return self._not_found(finished, documents), embedded

    def _open(self, uri: str) -> int:
        return sources.open_source(uri, most_bytes=self.settings.document_max_mb << 20)

    def _not_found(self, finished: list[Finished], documents: Sequence[Source]) -> list[Finished]:
        """Give documents that were not found their reason, and leave what the collection holds of them.

        Whether they were removed is not this host's to say: it may lack the share, or an NFS cache may not
        know a new name yet. The next listing, which the planner makes and guards, removes what is gone.
        """
        folders = {source.key: sources.folder(source.uri) for source in documents}

        def judged(item: Finished) -> Finished:
            if item.outcome != "removed":
                return item
            reason = (
                f"listed, but not found on {self.settings.host}: is {folders[item.key]} mounted there? "
                "The next submit plans it again, or removes it"
            )
            return replace(item, outcome="failed", error=reason)

        return [judged(item) for item in finished]

    def _commit(
        self, connection: Connection, lease: ShardLease, finished: Sequence[Finished], waits: dict[str, float]
    ) -> None:
        """Replace the documents' chunks, mark documents and shard, in the transaction that holds the rows."""
        held = lease.claim
        values = {"job": held.job, "shard": held.shard, "fence": held.fence, **lease.counts()}
        values["skipped"] = sum(item.outcome == "skipped" for item in finished)
        values["waits"] = json.dumps({stage: round(seconds, 3) for stage, seconds in waits.items()})
        connection.execute(query("shards.make_finished"))
        with connection.cursor().copy("COPY shard_finished FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "text", "text", "bytea", "int4", "int8", "int8"])
            for item in finished:
                copy.write_row(
                    (
                        item.key, item.outcome, item.error, item.content_hash, item.chunks, item.tokens,
                        item.truncated_tokens,
                    )
                )  # fmt: skip
        with database_works(lease, self.child):
            connection.execute("ANALYZE shard_finished")  # or a large table of chunks may be read whole
        for statement in (
            "shards.delete_chunks",
            "shards.insert_chunks",
            "shards.update_documents",
            "shards.update_job_documents",
        ):
            composed = sql.SQL(query(statement)).format(chunks=sql.Identifier(f"chunks_{held.collection}"))
            with database_works(lease, self.child):
                connection.execute(composed, values)
        self.keeper.release()
        with database_works(lease, self.child):
            if connection.execute(query("shards.done"), values).rowcount != 1:
                raise FenceLost(f"fence {held.fence} is not the shard's any more")
            connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
            connection.commit()

    def _back(self, connection: Connection, lease: ShardLease, error: Exception) -> None:
        """Give a shard back that this slot cannot do, and rest: another may take it; it must not spin."""
        held = lease.claim
        self.keeper.release()
        connection.rollback()
        release(connection, held.shard, held.fence, str(error))
        event(log, "given back", level=logging.ERROR, job=held.job, shard=held.shard, reason=error)
        self._pause(IDLE_PAUSE)

    def _failed(
        self, connection: Connection, lease: ShardLease, error: Exception, inflight: Sequence[int]
    ) -> None:
        """Count an unforeseen error as a crash: it must not loop, and a document may be the cause.

        `inflight`: the documents under way when it came. The note may be older, and is asked where there are
        none.
        """
        held = lease.claim
        self.keeper.release()
        connection.rollback()
        note = notes.read(self.settings, held.shard)
        reason = f"{type(error).__name__}: {error}"
        limit = self.settings.crash_limit
        suspects = inflight or (note.documents if note else ())
        crashed(connection, held.shard, held.fence, suspects, limit=limit, reason=reason)
        if self.model.device.startswith("cuda"):
            # After an error on the device its context may answer every call with the same error.
            os._exit(EX_SOFTWARE)

    def _condemned(self) -> bool:
        """Return whether an error is the GPU's: the worker's parent may hear of it a look later than this."""
        if not self.model.device.startswith("cuda") or health.read(self.settings) is None:
            return self.pulse.condemned
        deadline = time.monotonic() + self.settings.health_seconds + _LOOK_SECONDS
        while not self.pulse.condemned and time.monotonic() < deadline:
            self.child.advance()
            time.sleep(0.1)
        return self.pulse.condemned

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.pulse.draining:
            self.child.advance()
            time.sleep(0.5)

    def _advance(self, lease: ShardLease) -> None:
        lease.advanced_at = time.monotonic()
        self.child.advance()

    def _note(self, lease: ShardLease, documents: Sequence[int]) -> None:
        held = lease.claim
        try:
            notes.write(self.settings, held.shard, held.fence, documents, job=held.job)
        except OSError as error:
            if not lease.unnoted:
                event(
                    log, "what is in flight cannot be noted", level=logging.WARNING,
                    job=held.job, shard=held.shard, error=error,
                )  # fmt: skip
            lease.unnoted = True


def _check(documents: Sequence[Source], finished: Sequence[Finished], rows: dict[int, int]) -> None:
    """Raise RuntimeError unless every document ended once, with as many rows as it says."""
    keys = sorted(item.key for item in finished)
    if keys != sorted(source.key for source in documents):
        raise RuntimeError(f"the engine finished {len(keys)} documents of {len(documents)}, or one twice")
    for item in finished:
        if item.outcome == "embedded" and rows.get(item.key, 0) != item.chunks:
            raise RuntimeError(
                f"document {item.key} has {rows.get(item.key, 0)} rows, and says {item.chunks}"
            )
