"""What the documents' rows are where nothing fails: embedded once by the same lab, kept, compared with."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chaos.cluster import DOCUMENTS, Cluster, wait
from chaos.documents import Documents
from chaos.kinds import ChaosError
from chaos.log import EventLog

#: Of one document, by ordinal: the hash of the text, and the vector.
Chunks = dict[int, tuple[str, NDArray[np.float32]]]
_SECONDS = 1200.0


@dataclass(frozen=True)
class Reference:
    """The rows of each document, by the hash of its bytes, and how fast they were made."""

    rows: dict[str, Chunks]
    tokens_per_second: float

    def save(self, path: Path) -> None:
        """Keep it for the next run."""
        names = [
            (key, ordinal, text) for key, held in self.rows.items() for ordinal, (text, _) in held.items()
        ]
        vectors = np.array([vector for held in self.rows.values() for _, vector in held.values()])
        path.parent.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"names": names, "tokens_per_second": self.tokens_per_second})
        np.savez_compressed(path, vectors=vectors, about=np.array(about))

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Return what `save` kept."""
        with np.load(path) as kept:
            about, vectors = json.loads(str(kept["about"])), kept["vectors"]
        rows: dict[str, Chunks] = defaultdict(dict)
        for (key, ordinal, text), vector in zip(about["names"], vectors, strict=True):
            rows[key][ordinal] = (text, vector)
        return cls(dict(rows), about["tokens_per_second"])


def collection_rows(cluster: Cluster, collection: str) -> dict[str, tuple[str, Chunks]]:
    """Return a collection's rows by document: the hash of its bytes, and its chunks."""
    found = cluster.ask("SELECT id FROM collections WHERE name = %s", [collection])
    if not found:
        return {}
    rows: dict[str, tuple[str, Chunks]] = {}
    for uri, key, ordinal, text, vector in cluster.ask(
        "SELECT d.uri, coalesce(encode(d.content_hash, 'hex'), ''), k.ordinal, "
        "encode(sha256(convert_to(k.text, 'UTF8')), 'hex'), k.embedding::text "
        f"FROM chunks_{found[0][0]} k LEFT JOIN documents d ON d.id = k.document_id ORDER BY 1, 3"
    ):
        held = rows.setdefault(str(uri), (key, {}))[1]
        held[ordinal] = (text, np.fromstring(vector[1:-1], dtype=np.float32, sep=","))
    return rows


def provide(cluster: Cluster, documents: Documents, place: Path, log: EventLog, version: str) -> Reference:
    """Return the reference for these documents and this version of the program, made where there is none."""
    model = cluster.settings.get("SEMANTIK_MODEL_REVISION", "")[:8]
    path = place / f"reference-{documents.digest}-{model}-{version}.npz"
    if path.exists():
        log.write("reference", show=f"reference: {path.name}")
        return Reference.load(path)
    log.write("reference", show="reference: embedding all documents without any fault")
    begun = time.time()
    collections = {}
    for folder in documents.folders:
        if folder != "poison":
            collection = f"reference-{folder}-{int(begun)}"
            said = cluster.semantik("submit", f"{DOCUMENTS}/chaos/{folder}", "--collection", collection)
            collections[collection] = str(said["job"]["id"])

    def ended() -> bool:
        return all(job_state(cluster, job)["finished_at"] is not None for job in collections.values())

    if not wait(ended, _SECONDS, 1.0):
        raise ChaosError(f"the reference was not embedded within {_SECONDS:.0f} s: see lab/lab logs")
    rows: dict[str, Chunks] = {}
    for collection, job in collections.items():
        state = job_state(cluster, job)["state"]
        if state != "completed":
            raise ChaosError(f"the reference job of {collection} ended as {state}")
        rows |= dict(collection_rows(cluster, collection).values())
    (tokens, seconds) = cluster.ask(
        "SELECT sum(tokens)::float8, extract(epoch FROM max(finished_at) - min(started_at))::float8 "
        "FROM shards WHERE job_id = ANY(%s::uuid[])", [list(collections.values())],
    )[0]  # fmt: skip
    reference = Reference(rows, tokens / seconds)
    reference.save(path)
    log.write(
        "reference embedded", seconds=seconds, tokens=tokens,
        show=f"reference: {len(rows)} documents, {reference.tokens_per_second:.0f} tokens/s",
    )  # fmt: skip
    for collection in collections:
        cluster.semantik("collections", "drop", collection, "--yes")
    return reference


def job_state(cluster: Cluster, job: str) -> dict[str, Any]:
    """Return state and end of a job."""
    state, finished = cluster.ask("SELECT state, finished_at FROM jobs WHERE id = %s", [job])[0]
    return {"state": state, "finished_at": finished}
