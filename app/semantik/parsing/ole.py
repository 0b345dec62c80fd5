"""OLE compound files, what Office wrote before 2007: which format one holds, and its streams."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import olefile

from semantik.exceptions import DocumentError

# Streams that tell what a compound file is, in the order in which they decide.
_CONTENTS = (
    ("EncryptedPackage", "", "encrypted Office document: a password is needed to open it"),
    ("WordDocument", "doc", ""),
    ("PowerPoint Document", "", "unsupported type: old PowerPoint presentation; save it as .pptx"),
    ("Workbook", "xlsx", ""),
    ("Book", "xlsx", ""),
    ("__properties_version1.0", "", "unsupported type: Outlook message; save it as .eml"),
    ("VisioDocument", "", "unsupported type: old Visio drawing"),
)

# What olefile raises on damage; it walks the directory by recursion.
_DAMAGE = (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, struct.error)


def kind_of(data: bytes, name: str) -> str:  # noqa: ARG001 - the content says it all
    """Return the kind of the document in a compound file; DocumentError with the reason when it is none."""
    with opened(data) as file:
        for stream, kind, reason in _CONTENTS:
            if file.exists(stream):
                if kind:
                    return kind
                raise DocumentError(reason)
    raise DocumentError("unsupported type: OLE compound file of no known kind, or too damaged to tell")


@contextmanager
def opened(data: bytes) -> Iterator[olefile.OleFileIO]:
    """Open a compound file; DocumentError when it is damaged."""
    try:
        # As a file: olefile takes short bytes for a path.
        file = olefile.OleFileIO(io.BytesIO(data))
    except _DAMAGE as error:
        raise DocumentError(f"broken OLE compound file: {error}") from error
    try:
        yield file
    finally:
        file.close()


def stream(file: olefile.OleFileIO, name: str) -> bytes:
    """Return a stream's bytes; DocumentError when it is missing or damaged."""
    try:
        # A chain of sectors that runs in a circle gives as many bytes as the directory claims: up to 4 GB.
        if file.get_size(name) > file.fp.getbuffer().nbytes:
            raise ValueError("larger than the file")
        content: bytes = file.openstream(name).read()
    except _DAMAGE as error:
        raise DocumentError(f"broken OLE compound file: stream {name}: {error}") from error
    return content
