"""The committed state of the cluster, as one query sees it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg


@dataclass(frozen=True)
class Job:
    id: str
    collection: int
    state: str
    planned: bool
    paused: bool
    fence: int
    expired: bool
    planner: str | None
    priority: int
    unchanged: int
    attempts: int
    leased: bool


@dataclass(frozen=True)
class Shard:
    id: int
    job: str
    state: str
    fence: int
    attempt: int
    crashes: int
    expiries: int
    slot: str | None
    documents: int
    lease: str | None
    expired: bool


@dataclass(frozen=True)
class Snapshot:
    """The committed state."""

    jobs: dict[str, Job]
    shards: dict[int, Shard]
    documents: dict[tuple[str, int], tuple[int | None, str | None]]  # job, document: shard, outcome
    held: dict[int, tuple[int, str, int]]  # document: collection, state, chunks
    chunks: dict[int, tuple[int, int, tuple[str, ...]]]  # document: rows, last ordinal, places
    counts: dict[str, tuple[int, ...]]  # job: its documents, and of them done, failed, skipped, removed


class Camera:
    """Takes snapshots over one connection, of the collections with these keys."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], collections: Iterable[int]) -> None:
        self._connection = connection
        chunks = " UNION ALL ".join(
            f"SELECT document_id, ordinal, place FROM chunks_{key}" for key in collections
        )
        self._all = f"""
            SELECT
              (SELECT coalesce(jsonb_agg(jsonb_build_array(id, collection_id, state, planned, paused, fence,
                  coalesce(lease_until < now(), false), planner, priority, unchanged, plan_attempts,
                  lease_until IS NOT NULL)), '[]') FROM jobs),
              (SELECT coalesce(jsonb_agg(jsonb_build_array(id, job_id, state, fence, attempt, crashes,
                  expiries, slot, documents, lease_until, coalesce(lease_until < now(), false))), '[]')
               FROM shards),
              (SELECT coalesce(jsonb_agg(jsonb_build_array(job_id, document_id, shard_id, outcome)), '[]')
               FROM job_documents),
              (SELECT coalesce(jsonb_agg(jsonb_build_array(id, collection_id, state, chunks)), '[]')
               FROM documents),
              (SELECT coalesce(jsonb_agg(jsonb_build_array(document_id, count, last, places)), '[]')
               FROM (SELECT document_id, count(*) AS count, max(ordinal) AS last,
                            jsonb_agg(DISTINCT place) AS places
                     FROM ({chunks}) c GROUP BY document_id) d),
              (SELECT coalesce(jsonb_agg(jsonb_build_array(job_id, total, done, failed, skipped, removed)),
                               '[]') FROM job_counts)"""

    def take(self) -> Snapshot:
        row = self._connection.execute(self._all).fetchone()
        assert row is not None
        jobs, shards, documents, held, chunks, counts = row
        return Snapshot(
            {it[0]: Job(*it) for it in jobs},
            {it[0]: Shard(*it) for it in shards},
            {(job, document): (shard, outcome) for job, document, shard, outcome in documents},
            {key: (collection, state, count) for key, collection, state, count in held},
            {key: (count, last, tuple(places)) for key, count, last, places in chunks},
            {job: tuple(numbers) for job, *numbers in counts},
        )
