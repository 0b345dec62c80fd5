"""Collections: where vectors go. Each remembers its model and has its own table of chunks."""

from __future__ import annotations

import builtins
import re
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import class_row

from semantik.database import Connection, query
from semantik.exceptions import NotFound, Refused, SettingsError
from semantik.settings import Settings, longest_overlap

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
#: pgvector's HNSW indexes on halfvec end here.
MAX_DIMENSIONS = 4000
#: Tokens of a chunk at least, special tokens included.
SHORTEST_CHUNK = 16


@dataclass(frozen=True)
class Collection:
    """One collection with the sums over its documents."""

    id: int
    name: str
    model: str
    model_revision: str
    dim: int
    chunk_tokens: int  # 0: the model's limit
    chunk_overlap: int
    index_state: str
    created_at: datetime
    documents: int
    failed: int
    stale: int
    chunks: int
    tokens: int

    @property
    def chunk_table(self) -> str:
        """The name of its table of chunks, in the schema."""
        return f"chunks_{self.id}"


def list(connection: Connection) -> builtins.list[Collection]:  # reads as collections.list(...)
    """Return all collections in the order of their names."""
    with connection.cursor(row_factory=class_row(Collection)) as cursor:
        return cursor.execute(query("collections.listing"), {"name": None}).fetchall()


def find(connection: Connection, name: str) -> Collection | None:
    """Return the collection `name`, None when there is none."""
    with connection.cursor(row_factory=class_row(Collection)) as cursor:
        return cursor.execute(query("collections.listing"), {"name": name}).fetchone()


def show(connection: Connection, name: str) -> Collection:
    """Return the collection `name`. Raises NotFound."""
    found = find(connection, name)
    if found is None:
        raise NotFound(f"there is no collection {name!r}: 'semantik collections' lists them")
    return found


def create(connection: Connection, settings: Settings, name: str) -> Collection:
    """Make a collection for the cluster's model, or return the one that another made meanwhile.

    Raises Refused for a name or a dimension that cannot be, SettingsError where the model is not known.
    """
    if not NAME.fullmatch(name):
        raise Refused(
            f"{name!r} is no name for a collection: use lower-case letters, digits, '-' and '_', up to 63, "
            "beginning with a letter or digit"
        )
    if not settings.model or not settings.model_revision or settings.model_dim < 1:
        raise SettingsError(
            "SEMANTIK_MODEL, SEMANTIK_MODEL_REVISION and SEMANTIK_MODEL_DIM say what a new collection is "
            "embedded with, and are not all set: see /etc/semantik/semantik.env on the cluster's hosts"
        )
    if settings.model_dim > MAX_DIMENSIONS:
        raise Refused(
            f"{settings.model} has {settings.model_dim} dimensions, and an index ends at {MAX_DIMENSIONS}: "
            "choose a smaller model"
        )
    chunk_tokens, overlap = settings.chunk_tokens or settings.model_max_tokens, settings.chunk_overlap
    if chunk_tokens > settings.model_max_tokens > 0:
        raise SettingsError(
            f"SEMANTIK_CHUNK_TOKENS={chunk_tokens}, and {settings.model} takes at most "
            f"{settings.model_max_tokens} tokens: choose fewer, or 0 for the model's limit"
        )
    if 0 < chunk_tokens < SHORTEST_CHUNK:
        raise SettingsError(f"SEMANTIK_CHUNK_TOKENS={chunk_tokens}: choose {SHORTEST_CHUNK} or more")
    most = longest_overlap(chunk_tokens)
    if chunk_tokens > 0 and overlap > most:
        raise SettingsError(
            f"SEMANTIK_CHUNK_OVERLAP={overlap} does not fit chunks of {chunk_tokens} tokens "
            f"(SEMANTIK_CHUNK_TOKENS, or the model's limit): choose 0 to {most}, half of one"
        )
    try:
        with connection.transaction():
            connection.execute(
                "SELECT create_collection(%s, %s, %s, %s, %s, %s)",
                (
                    name,
                    settings.model,
                    settings.model_revision,
                    settings.model_dim,
                    chunk_tokens,
                    overlap,
                ),
            )
    except psycopg.errors.UniqueViolation:
        pass  # made by another submit since we looked: the same model, or `submit` refuses it
    return show(connection, name)


def drop(connection: Connection, name: str) -> None:
    """Drop the collection with its chunks and jobs. Raises NotFound, Refused while a job of it is active."""
    found = show(connection, name)
    row = connection.execute("SELECT drop_collection(%s)", (found.id,)).fetchone()
    if row != (True,):
        raise Refused(
            f"collection {name!r} has a job that has not ended: 'semantik jobs', then 'semantik cancel JOB'"
        )
