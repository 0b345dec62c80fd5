"""What a document may unpack to, in all its layers together.

`semantik.parsing.parse` opens a `Budget` per document; whatever decompresses calls `spend` with each block
before it keeps it, and what a document holds inside goes through `semantik.parsing.parse_inner`, which counts
the depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from semantik.exceptions import DocumentError

#: Bytes that all layers of one document may unpack to.
MAX_UNPACKED = 512 * 2**20
#: Times its own size that a document may unpack to, once that is more than UNPACKED_FREE. Deflate reaches
#: 1032; tables of XML, the most repetitive of honest contents, stay below 100.
MAX_RATIO = 200
UNPACKED_FREE = 32 * 2**20
#: Documents inside of documents: an email in an email in a gzip is 2 deep.
MAX_DEPTH = 4


@dataclass
class Budget:
    """What is left to one document."""

    size: int  # bytes of the document itself
    unpacked: int = 0  # bytes so far
    depth: int = 0


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def document(size: int) -> Iterator[None]:
    """Account for a document of `size` bytes until the block ends."""
    token = _budget.set(Budget(size))
    try:
        yield
    finally:
        _budget.reset(token)


@contextmanager
def inner(what: str) -> Iterator[None]:
    """Go one layer deeper until the block ends; DocumentError above MAX_DEPTH."""
    budget = _budget.get()
    if budget is None:  # a format's module called by itself
        yield
        return
    if budget.depth >= MAX_DEPTH:
        raise DocumentError(f"nested more than {MAX_DEPTH} documents deep, at {what!r}")
    budget.depth += 1
    try:
        yield
    finally:
        budget.depth -= 1


def spend(unpacked: int) -> None:
    """Account for `unpacked` more bytes of decompressed data; DocumentError when the document is a bomb."""
    budget = _budget.get()
    if budget is None:
        return
    budget.unpacked += unpacked
    if budget.unpacked > MAX_UNPACKED:
        raise DocumentError(f"unpacks to more than {MAX_UNPACKED // 2**20} MB")
    if budget.unpacked > max(UNPACKED_FREE, MAX_RATIO * budget.size):
        raise DocumentError(f"unpacks to more than {MAX_RATIO} times its size: a decompression bomb?")
