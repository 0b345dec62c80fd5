"""Every document and every row of a job, held against the rows of a run without faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from chaos.reference import Chunks, Reference

#: Batches pack differently, so the last bits of a vector differ.
LEAST_COSINE = 0.99999
ENDED_WELL = ("completed", "completed_with_errors")


@dataclass(frozen=True)
class Job:
    """A job as the database has it at the end. Documents are URIs."""

    id: str
    collection: str
    state: str
    outcomes: Mapping[str, tuple[str | None, str | None]]  # outcome and error of each document
    rows: Mapping[str, tuple[str, Chunks]]  # of the collection: the hash of the bytes, and the chunks
    stored: int = 0  # chunks in the collection's table, whatever they belong to

    @property
    def role(self) -> str:
        """long, short, side, poison or cancel."""
        return self.collection.partition("-")[0]


@dataclass
class Findings:
    """What is wrong. Each entry is a sentence."""

    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # documents, poison aside, and their reasons
    poison: list[int] = field(default_factory=list)  # attempts at each poisonous document
    documents: int = 0
    rows: int = 0


def account(job: Job, expected: Sequence[str], reference: Reference, found: Findings) -> None:
    """Add to `found` what is wrong with a job; `expected` are the URIs that it was to embed."""
    if job.state not in (*ENDED_WELL, "cancelled"):
        found.lost.append(f"{job.collection}: the job is {job.state}")
    cut_short = job.state == "cancelled"
    unlisted = sorted(set(expected) - set(job.outcomes))
    if unlisted and not cut_short:
        found.lost.append(f"{job.collection}: {len(unlisted)} documents are not in the job, as {unlisted[0]}")
    held = sum(len(chunks) for _, chunks in job.rows.values())
    if job.stored > held:
        found.duplicates.append(f"{job.collection}: {job.stored - held} rows beside those of its documents")
    for uri, (outcome, error) in sorted(job.outcomes.items()):
        found.documents += 1
        key, chunks = job.rows.get(uri, ("", {}))
        where = f"{job.collection}: {uri}"
        if outcome in ("embedded", "skipped"):
            _compare(where, chunks, reference.rows.get(key), found)
        elif chunks:
            found.duplicates.append(f"{where} has {len(chunks)} rows and was not embedded ({outcome})")
        elif outcome == "failed":
            _failed(job, expected, uri, error or "", found)
        elif not cut_short:
            found.lost.append(f"{where} has no outcome")
    for uri in sorted(set(job.rows) - set(job.outcomes)):
        found.duplicates.append(f"{job.collection}: rows of {uri}, which is no document of the job")


def _failed(job: Job, expected: Sequence[str], uri: str, error: str, found: Findings) -> None:
    if job.role == "poison" and uri == expected[-1]:
        times = [int(word) for word in error.split() if word.isdigit()]
        found.poison.append(times[0] if times and error.startswith("quarantined") else 99)
    else:
        found.failed.append((uri, error))


def _compare(where: str, chunks: Chunks, right: Chunks | None, found: Findings) -> None:
    found.rows += len(chunks)
    if right is None:
        found.changed.append(f"{where}: no such bytes were embedded without faults")
        return
    missing, more = set(right) - set(chunks), set(chunks) - set(right)
    if missing:
        found.lost.append(f"{where}: {len(missing)} of {len(right)} rows are missing")
    if more:
        found.duplicates.append(f"{where}: {len(more)} rows too many")
    for ordinal in sorted(set(right) & set(chunks)):
        (text, vector), (right_text, right_vector) = chunks[ordinal], right[ordinal]
        if text != right_text:
            found.changed.append(f"{where}: row {ordinal} has another text")
        elif (cosine := _cosine(vector, right_vector)) < LEAST_COSINE:
            found.changed.append(f"{where}: row {ordinal} has another vector, cosine {cosine:.6f}")


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    a, b = left.astype(np.float64), right.astype(np.float64)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
