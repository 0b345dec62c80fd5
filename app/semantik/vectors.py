"""Vectors in a Parquet file: one row per chunk, readable by any tool that knows the format.

| column | type | holds |
|---|---|---|
| document | string | path or URL; rows are sorted by it, then by ordinal |
| ordinal | int32 | number of the chunk in its document, from 0 |
| place | string or null | the page or heading that the chunk starts in |
| text | string | the exact slice of the document's text |
| token_count | int32 | what the model saw, special tokens included |
| content_hash | string | SHA-256 of the document's bytes, hexadecimal |
| embedding | fixed_size_list<float>[dim] | the vector |

The file's metadata has one key, `semantik`: a JSON object that says which model made the vectors, how the
text was cut and what became of the documents. Nothing in a file depends on when it was written.

Vectors hold the float16 values that a cluster stores, as float32: readers of float16 are still rare, and
with the bytes of the floats split and compressed the zeros cost next to nothing on disk.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semantik.exceptions import NotFound, Refused, SemantikError
from semantik.search import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from semantik.engine import Row

#: Of the columns and of the metadata; a reader refuses what it does not know.
FORMAT = 1
#: Rows that are in memory at once: about 10 MB at 384 dimensions.
ROW_GROUP = 4_096
_KEY = b"semantik"


def schema(dim: int) -> pa.Schema:
    """Return the columns for vectors of `dim` dimensions."""
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("document", pa.string(), nullable=False),
            pa.field("ordinal", pa.int32(), nullable=False),
            pa.field("place", pa.string()),
            pa.field("text", pa.string(), nullable=False),
            pa.field("token_count", pa.int32(), nullable=False),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("embedding", vector, nullable=False),
        ]
    )


def table(rows: Sequence[tuple[str, str, Row]], dim: int) -> pa.Table:
    """Return `rows`, each with its document's URI and content hash, as a table in the order given."""
    vectors = np.stack([row.vector for _, _, row in rows]) if rows else np.empty((0, dim), np.float16)
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    columns = schema(dim)
    return pa.Table.from_arrays(
        [
            pa.array([uri for uri, _, _ in rows], pa.string()),
            pa.array([row.ordinal for _, _, row in rows], pa.int32()),
            pa.array([row.place for _, _, row in rows], pa.string()),
            pa.array([row.text for _, _, row in rows], pa.string()),
            pa.array([row.token_count for _, _, row in rows], pa.int32()),
            pa.array([digest for _, digest, _ in rows], pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, type=columns.field("embedding").type),
        ],
        schema=columns,
    )


@contextmanager
def replacing(path: Path, draft: Path) -> Iterator[IO[bytes]]:
    """Write `draft`, which becomes `path` at the end, whole and on the disk; both on one filesystem.

    Whatever interrupts it, `path` is what it was before or what it is to be. Raises SemantikError when there
    is no room.
    """
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SemantikError(
            f"{path} cannot be written: {error.strerror or error}; what was embedded so far is kept beside "
            "it: make room, then run the same command again"
        ) from error


def sync_directory(path: Path) -> None:
    """Have the names in the directory on the disk, so that a rename outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(file: IO[bytes], tables: Iterable[pa.Table], dim: int, header: dict[str, Any]) -> None:
    """Write tables one behind the other, in row groups of their own length, a few of which are in memory."""
    columns = schema(dim).with_metadata({_KEY: json.dumps(header, sort_keys=True).encode()})
    writer = pq.ParquetWriter(
        file,
        columns,
        compression="zstd",
        compression_level=1,
        use_dictionary=["document", "place", "content_hash"],
        column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
        write_statistics=["document", "ordinal"],
    )
    with writer:
        for some in regrouped(tables):
            writer.write_table(some, row_group_size=ROW_GROUP)
            # Arrow's allocator keeps what was freed, and a little more each time.
            pa.default_memory_pool().release_unused()


def regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly ROW_GROUP rows, the last one shorter."""
    waiting: list[pa.Table] = []
    count = 0
    for some in tables:
        waiting.append(some)
        count += some.num_rows
        if count < ROW_GROUP:
            continue
        whole = pa.concat_tables(waiting)
        for start in range(0, count - count % ROW_GROUP, ROW_GROUP):
            yield whole.slice(start, ROW_GROUP)
        rest = whole.slice(count - count % ROW_GROUP)
        waiting, count = ([rest], rest.num_rows) if rest.num_rows else ([], 0)
    if waiting:
        yield pa.concat_tables(waiting)


def read(path: Path) -> Iterator[pa.Table]:
    """Yield the rows of a file in their order, a row group at a time."""
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            # Each of Arrow's threads would keep an arena of its own, more or less by chance.
            yield file.read_row_group(number, use_threads=False).replace_schema_metadata(None)


def read_header(path: Path) -> dict[str, Any]:
    """Return what a file says of its vectors.

    Raises NotFound when it is not there, Refused when it is no Parquet file of this program's or of a format
    that this release does not know.
    """
    try:
        found = pq.read_metadata(path).metadata or {}
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist: 'semantik embed DIR -o {path}' makes it") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise Refused(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from error
    if _KEY not in found:
        raise Refused(f"{path} is a Parquet file, but not one that 'semantik embed' wrote")
    header: dict[str, Any] = json.loads(found[_KEY])
    if header["format"] != FORMAT:
        raise Refused(
            f"{path} is of format {header['format']}, this release knows {FORMAT}: use the release that "
            f"wrote it ({header.get('release', 'unknown')}), or embed again"
        )
    return header


def nearest(path: Path, question: NDArray[np.float32], limit: int) -> list[Hit]:
    """Return the `limit` chunks nearest to `question`, float32 (dim,), by cosine, best first.

    Every vector is looked at, a row group at a time. Raises Refused when the dimensions differ.
    """
    unit = question / max(float(np.linalg.norm(question)), 1e-12)
    best: list[tuple[float, int, int]] = []  # (score, -row group, -row in it): a heap, the worst first
    with pq.ParquetFile(path) as file:
        dim = file.schema_arrow.field("embedding").type.list_size
        if len(unit) != dim:
            raise Refused(
                f"the question's vector has {len(unit)} dimensions, those of {path} have {dim}: give the "
                "model that the file was made with"
            )
        for number in range(file.num_row_groups):
            some = file.read_row_group(number, columns=["embedding"], use_threads=False)
            scores = _cosines(some, unit)
            del some
            pa.default_memory_pool().release_unused()
            for row in np.argsort(-scores, kind="stable")[:limit].tolist():
                entry = (float(scores[row]), -number, -row)
                if len(best) < limit:
                    heapq.heappush(best, entry)
                elif entry > best[0]:
                    heapq.heapreplace(best, entry)
                else:
                    break
        return [_hit(file, score, -number, -row) for score, number, row in sorted(best, reverse=True)]


def _cosines(some: pa.Table, unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each row's vector and `unit`: float32 (n,)."""
    pieces = [chunk.flatten().to_numpy() for chunk in some.column("embedding").chunks]
    matrix = np.concatenate(pieces).reshape(-1, len(unit))
    norms = np.maximum(np.linalg.norm(matrix, axis=1), 1e-12)
    cosines: NDArray[np.float32] = (matrix @ unit) / norms
    return cosines


def _hit(file: pq.ParquetFile, score: float, number: int, row: int) -> Hit:
    columns = ["document", "place", "ordinal", "text"]
    found = file.read_row_group(number, columns=columns).slice(row, 1).to_pylist()[0]
    return Hit(score, found["document"], found["place"] or "", found["ordinal"], found["text"])
