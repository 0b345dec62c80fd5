"""A job to hold, lose and end, without any worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster import Cluster

from semantik import jobs, shards
from semantik.database import Connection, connect, query
from semantik.scheduler import Scheduler
from semantik.shards import Claim


class Bench:
    """One planned job with one shard of `documents` documents, in a collection of its own."""

    def __init__(self, cluster: Cluster, folder: Path, documents: int = 3) -> None:
        self.cluster = cluster
        self.name = folder.name
        self.settings = cluster.settings("scheduler")
        folder.mkdir()
        with cluster.connection() as operator:
            self.job = str(jobs.submit(operator, cluster.settings(), str(folder), folder.name).id)
        with cluster.superuser() as connection:
            connection.execute("UPDATE jobs SET state = 'planning' WHERE id = %s", (self.job,))
            connection.execute("UPDATE jobs SET state = 'running', planned = true WHERE id = %s", (self.job,))
            row = connection.execute(
                "INSERT INTO shards (job_id, number, documents, bytes) VALUES (%s, 1, %s, 10) RETURNING id",
                (self.job, documents),
            ).fetchone()
            assert row is not None
            self.shard = int(str(row[0]))
            for at in range(documents):
                connection.execute(
                    "WITH made AS (INSERT INTO documents (collection_id, uri) "
                    "SELECT collection_id, %(uri)s FROM jobs WHERE id = %(job)s RETURNING id, uri) "
                    "INSERT INTO job_documents (job_id, document_id, uri, size, version, shard_id) "
                    "SELECT %(job)s::uuid, id, uri, 5, 'v1', %(shard)s FROM made",
                    {"uri": f"{folder}/{at}.txt", "job": self.job, "shard": self.shard},
                )

    def worker(self) -> Connection:
        return connect(self.cluster.settings("worker"), application_name="test worker")

    def claim(self, connection: Connection, slot: str, lease: float = 60.0) -> Claim | None:
        revision = self.settings.model_revision
        return shards.claim(connection, self.shard, slot=slot, lease_seconds=lease, model_revision=revision)

    def done(self, connection: Connection, held: Claim) -> int:
        values: dict[str, Any] = {
            "shard": held.shard, "fence": held.fence, "waits": None,
            "documents_done": 0, "chunks": 0, "tokens": 0, "truncated_tokens": 0, "skipped": 0,
        }  # fmt: skip
        return connection.execute(query("shards.done"), values).rowcount

    def expire(self) -> None:
        with self.cluster.superuser() as connection:
            connection.execute(
                "UPDATE shards SET lease_until = now() - interval '1 s' WHERE id = %s AND state = 'running'",
                (self.shard,),
            )

    def reap(self) -> None:
        scheduler = Scheduler(self.settings, None)
        with connect(self.settings, autocommit=True) as connection:
            scheduler.reap(connection)

    def row(self, columns: str) -> tuple[Any, ...]:
        return self.cluster.rows(f"SELECT {columns} FROM shards WHERE id = %s", self.shard)[0]
