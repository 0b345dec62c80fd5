"""A listing cut into groups of documents: what `semantik embed` finishes, keeps and takes over as a whole.

Where a listing is cut depends on nothing but the documents near the cut, so that a document that was added,
changed or removed costs its own group and seldom more than the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from semantik.sources import Listed, is_local, list_source

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
    passed_over: list[tuple[str, str]]  # (path, what it is): no documents

    def fingerprint(self, key: str) -> str:
        """Return a digest of everything that was listed, and of `key`."""
        return _digest(
            key,
            ([item.uri, item.size, item.version] for item in self.documents),
            ([item.uri, item.error] for item in self.refused),
            self.passed_over,
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
    documents, refused = [], []
    for item in list_source(root):
        if item.error is not None:
            refused.append(item)
        elif not skip(item.uri):
            documents.append(item)
    documents.sort(key=lambda item: item.uri)
    refused.sort(key=lambda item: item.uri)
    passed = sorted(_passed_over(root)) if is_local(root) else []
    return Listing(documents, refused, passed)


def _passed_over(root: str) -> Iterator[tuple[str, str]]:
    """Yield what `list_source` leaves out below a directory, with what it is."""
    try:
        levels = [os.scandir(root)]
    except OSError:
        return  # a single document
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop().close()
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                levels.append(os.scandir(entry.path))
            elif not entry.is_file():
                yield os.fsencode(entry.path).decode("utf-8", "backslashreplace"), _kind(entry)
        except OSError:
            continue  # the listing has it among those that cannot be read


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "a link to a directory" if entry.is_dir() else "a link to no file"
    mode = entry.stat(follow_symlinks=False).st_mode
    kinds = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")


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
