"""Search: the question is embedded by `semantik-query.service`, the vectors are compared in the database.

No numpy and no pgvector adapter here: a question's vector travels as pgvector's own text form, and what is
not imported need not be waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semantik.exceptions import BrokerUnavailable, NotFound, Refused, SemantikError
from semantik.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection

QUERY_SECONDS = 10.0
STATEMENT_SECONDS = 30
#: HNSW looks at this many candidates at least; pgvector's own 40 loses more of the true neighbours.
EF_SEARCH = 100
EF_SEARCH_MAX = 1000  # pgvector's limit


@dataclass(frozen=True)
class Hit:
    """One chunk. `score` is the cosine of its vector and the question's, 1 for the same direction."""

    score: float
    uri: str
    place: str
    ordinal: int
    text: str


@contextmanager
def embedding(question: str, seconds: float = QUERY_SECONDS) -> Iterator[Callable[[], list[float]]]:
    """Send `question` to the query workers at once; the function given returns its vector when it is needed.

    So the worker computes while the caller connects to the database. Raises BrokerUnavailable, and
    SemantikError when no query worker answers within `seconds`.
    """
    from celery.exceptions import TimeoutError as NoAnswer
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    from semantik.broker import reach
    from semantik.celery_app import app

    def unreachable(error: Exception) -> BrokerUnavailable:
        reason = " ".join(str(error).split())
        return BrokerUnavailable(f"the question cannot be embedded: {reason}; see 'semantik check'")

    try:
        reach(app)
        result = app.send_task(
            "semantik.tasks.embed_query_task", args=[question], queue="query", expires=seconds, retry=False
        )
    except (BrokerUnavailable, OperationalError, RedisError) as error:
        raise unreachable(error) from error

    def vector() -> list[float]:
        try:
            return [float(x) for x in result.get(timeout=seconds)]
        except NoAnswer as error:
            raise SemantikError(
                f"no query worker answered within {seconds:.0f} s: 'semantik check' shows which is down; "
                "on a worker host: systemctl status semantik-query"
            ) from error
        except (OperationalError, RedisError) as error:
            raise unreachable(error) from error

    try:
        yield vector
    finally:
        # The answer expires by itself; an unreachable Redis was reported where it mattered.
        with suppress(OperationalError, RedisError):
            result.forget()


def search(
    connection: Connection[tuple[Any, ...]],
    settings: Settings,
    collection: str,
    vector: Callable[[], Sequence[float]],
    limit: int,
) -> list[Hit]:
    """Return the `limit` chunks of `collection` nearest to the question, best first.

    The search is exact until the collection has an HNSW index. Raises NotFound for an unknown collection and
    Refused where its vectors are another model's than the cluster's questions.
    """
    from psycopg import sql

    from semantik.database import query

    row = connection.execute(query("search.collection"), {"name": collection}).fetchone()
    if row is None:
        raise NotFound(f"there is no collection {collection!r}: 'semantik collections' lists those there are")
    number, model, revision, dim, index_state = row
    if settings.model and (model, revision) != (settings.model, settings.model_revision):
        raise Refused(
            f"{collection!r} holds vectors of {model} {revision[:8]}, this cluster embeds with "
            f"{settings.model} {settings.model_revision[:8]}: embed it again into a new collection"
        )
    question = vector()
    if len(question) != dim:
        raise Refused(
            f"the question's vector has {len(question)} dimensions, those of {collection!r} have {dim}"
        )
    with connection.transaction():
        connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'")
        if index_state == "ready":
            candidates = min(max(EF_SEARCH, 4 * limit), EF_SEARCH_MAX)
            connection.execute(f"SET LOCAL hnsw.ef_search = {candidates}")
        rows = connection.execute(
            sql.SQL(query("search.nearest")).format(chunks=sql.Identifier(f"chunks_{number}")),
            {"question": "[" + ",".join(map(repr, question)) + "]", "limit": limit},
        ).fetchall()
    return [Hit(float(score), uri, place, ordinal, text) for score, uri, place, ordinal, text in rows]
