"""A listing cut into groups of documents: what `semantik embed` finishes, keeps and takes over as a whole.

Where a listing is cut depends on nothing but the documents near the cut, so that a document that was added,
changed or removed costs its own group and seldom more than the next one.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from semantik.sources import Listed, list_source

#: Documents in a group at most: many small ones cost parsing, whatever they weigh.
MOST_DOCUMENTS = 512
#: Once a group is a quarter full, one document in so many ends it.
_ONE_IN = 16
#: What a document weighs whose size the store does not tell, bytes.
_UNKNOWN_BYTES = 64 * 1024


@dataclass(frozen=True)
class Listing:
    """What there is under a source, sorted by URI."""

    documents: list[Listed]
    refused: list[Listed]  # each with its error: names that are not UTF-8, directories that cannot be listed
    passed_over: list[Listed]  # each with what it is instead: no documents

    def fingerprint(self, key: str) -> str:
        """Return a digest of everything that was listed, and of `key`."""
        return _digest(
            key,
            ([item.uri, item.size, item.version] for item in self.documents),
            ([item.uri, item.error] for item in self.refused),
            ([item.uri, item.error] for item in self.passed_over),
        )


@dataclass(frozen=True)
class Group:
    """Neighbours in the listing; the first is number `first` of all documents."""

    first: int
    documents: tuple[Listed, ...]

    def fingerprint(self, key: str) -> str:
        """Return a digest of the documents as they were listed, and of `key`."""
        return _digest(key, ([item.uri, item.size, item.version] for item in self.documents))


def list_documents(root: str, skip: Callable[[str], bool]) -> Listing:
    """List the documents under `root` (as `normalize` returns it), without those that `skip` names.

    Raises what `list_source` raises.
    """
    found = Listing([], [], [])
    for item in list_source(root):
        if item.error is not None:
            (found.passed_over if item.no_document else found.refused).append(item)
        elif not skip(item.uri):
            found.documents.append(item)
    for some in (found.documents, found.refused, found.passed_over):
        some.sort(key=lambda item: item.uri)
    return found


def cut(documents: list[Listed], most_bytes: int) -> Iterator[Group]:
    """Yield `documents` in groups of about `most_bytes` bytes at most, a larger document by itself."""
    first = weight = 0
    for at, item in enumerate(documents):
        size = _UNKNOWN_BYTES if item.size is None else item.size
        if at > first and weight + size > most_bytes:
            yield Group(first, tuple(documents[first:at]))
            first, weight = at, 0
        weight += size
        count = at + 1 - first
        chosen = zlib.crc32(item.uri.encode()) % _ONE_IN == 0
        full = weight >= most_bytes or count >= MOST_DOCUMENTS
        quarter = 4 * weight >= most_bytes or 4 * count >= MOST_DOCUMENTS
        if full or (quarter and chosen):
            yield Group(first, tuple(documents[first : at + 1]))
            first, weight = at + 1, 0
    if first < len(documents):
        yield Group(first, tuple(documents[first:]))


def _digest(key: str, *lists: Iterable[Any]) -> str:
    total = hashlib.sha256(key.encode())
    for some in lists:
        total.update(b"\n")
        for item in some:
            total.update(json.dumps(item).encode() + b"\n")
    return total.hexdigest()
