"""What the demo did, in figures from the database, for the reader and for build/demo.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from semantik_demo.hosts import ROOT, Lab

FILE = ROOT / "build" / "demo.json"

#: The last job that embedded anything.
WORKED = """
SELECT to_jsonb(max(found.id::text)) FROM (
    SELECT j.id FROM jobs j JOIN collections c ON c.id = j.collection_id
    WHERE c.name = '{collection}' AND EXISTS (
        SELECT FROM job_documents d WHERE d.job_id = j.id AND d.outcome = 'embedded')
    ORDER BY j.created_at DESC LIMIT 1) AS found
"""
COLLECTION = """
SELECT jsonb_build_object('documents', count(*), 'failed', count(*) FILTER (WHERE d.state = 'failed'),
    'chunks', coalesce(sum(d.chunks), 0), 'tokens', coalesce(sum(d.tokens), 0),
    'truncated_tokens', coalesce(sum(d.truncated_tokens), 0))
FROM documents d JOIN collections c ON c.id = d.collection_id WHERE c.name = '{collection}'
"""
#: A shard that failed or was cancelled keeps the numbers of its last renewal, and nothing of it was kept.
JOB = """
SELECT jsonb_build_object(
    'documents',
        (SELECT count(*) FROM job_documents WHERE job_id = j.id AND outcome IN ('embedded', 'failed')),
    'failed', (SELECT count(*) FROM job_documents WHERE job_id = j.id AND outcome = 'failed'),
    'chunks', coalesce(sum(s.chunks), 0), 'tokens', coalesce(sum(s.tokens), 0),
    'truncated_tokens', coalesce(sum(s.truncated_tokens), 0),
    'seconds', round(extract(epoch FROM j.finished_at - j.started_at), 1))
FROM jobs j LEFT JOIN shards s ON s.job_id = j.id AND s.state IN ('running', 'done')
WHERE j.id = '{job}' GROUP BY j.id
"""
#: A slot's rate counts the time it held a shard; slots work side by side.
WORKERS = """
SELECT coalesce(jsonb_object_agg(slot, rate), '{{}}') FROM (
    SELECT slot,
        round((sum(tokens) / nullif(sum(extract(epoch FROM finished_at - started_at)), 0))::numeric) AS rate
    FROM shards WHERE job_id = '{job}' AND state = 'done' AND slot IS NOT NULL GROUP BY slot) AS rates
"""


def collect(lab: Lab, collection: str, job: str) -> dict[str, Any]:
    """Return the figures of `job`; where it found nothing to embed, those of the whole collection.

    Time and rates are then those of the last job that did embed.
    """
    worked = lab.query(WORKED.format(collection=collection)) or job
    figures: dict[str, Any] = lab.query(JOB.format(job=worked))
    of_job = worked == job
    if not of_job:
        figures.update(lab.query(COLLECTION.format(collection=collection)))
    seconds = float(figures["seconds"] or 0)
    work = lab.query(JOB.format(job=worked))
    figures.update(
        tokens_per_second=round(work["tokens"] / seconds) if seconds else 0,
        workers=lab.query(WORKERS.format(job=worked)),
        collection=collection,
        job=job,
        figures_of="job" if of_job else "collection",
    )
    return figures


def save(figures: dict[str, Any], path: Path = FILE) -> None:
    """Write the figures for programs."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def lines(figures: dict[str, Any]) -> list[str]:
    """Return the figures as sentences."""
    told = (
        "This run embedded" if figures["figures_of"] == "job" else "Nothing had changed. The collection holds"
    )
    took = "in" if figures["figures_of"] == "job" else "embedded by an earlier run in"
    result = [
        f"{told} {figures['documents']:,} documents ({figures['failed']} failed): "
        f"{figures['chunks']:,} chunks, {figures['tokens']:,} tokens,",
        f"{took} {figures['seconds']:,} s: {figures['tokens_per_second']:,} tokens/s. "
        f"Truncated tokens: {figures['truncated_tokens']}.",
    ]
    result += [
        f"  {slot:<8} {rate:>7,} tokens/s while it worked"
        for slot, rate in sorted(figures["workers"].items())
    ]
    return result
