"""Zip archives: which format one holds, and its members in blocks that are accounted for."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator

from semantik.exceptions import DocumentError
from semantik.parsing.limits import spend

#: More members than the largest books and decks have; reading the directory of more takes seconds.
MAX_MEMBERS = 20_000

_BLOCK_BYTES = 64 * 1024
# The only ones that document formats use. Of others zipfile cannot bound what a block unpacks to.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MIMETYPE_BYTES = 200
# The directory's entries, or what looks like them inside of a member: never fewer than there are.
_ENTRY = b"PK\x01\x02"

_MIMETYPES = (
    ("application/epub+zip", "epub"),
    ("application/vnd.oasis.opendocument.text", "odt"),
    ("application/vnd.oasis.opendocument.presentation", "odp"),
    ("application/vnd.oasis.opendocument.spreadsheet", "ods"),
)

# The type of the main part: .docm, .dotx and their like differ in the words between.
_MAIN_TYPE = re.compile(
    rb"application/vnd\.(?:openxmlformats-officedocument\.)?"
    rb"(wordprocessingml|ms-word|presentationml|ms-powerpoint|spreadsheetml|ms-excel)\.[A-Za-z.]{1,80}\.main\b"
)
_MAIN_KINDS = {
    b"wordprocessingml": "docx",
    b"ms-word": "docx",
    b"presentationml": "pptx",
    b"ms-powerpoint": "pptx",
    b"spreadsheetml": "xlsx",
    b"ms-excel": "xlsx",
}
_MAIN_PARTS = {"word/document.xml": "docx", "ppt/presentation.xml": "pptx", "xl/workbook.xml": "xlsx"}


class Archive:
    """The members of a zip archive, read from memory; nothing is written."""

    def __init__(self, data: bytes) -> None:
        if data.count(_ENTRY) > MAX_MEMBERS:
            raise DocumentError(f"zip archive of more than {MAX_MEMBERS} members")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
            raise DocumentError(f"broken zip archive: {error}") from error
        self.names = frozenset(self._zip.namelist())

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a member, checked and accounted for; DocumentError when it cannot be read."""
        try:
            if self._zip.getinfo(name).compress_type not in _COMPRESSIONS:
                raise DocumentError(f"zip archive of another kind: {name} is not compressed by deflate")
            with self._zip.open(name) as member:
                while block := member.read(_BLOCK_BYTES):
                    spend(len(block))
                    yield block
        except RuntimeError as error:
            raise DocumentError(f"encrypted zip archive: {error}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
            raise DocumentError(f"broken zip archive: {name}: {error}") from error
        except NotImplementedError as error:
            raise DocumentError(f"zip archive of another kind: {name}: {error}") from error

    def read(self, name: str) -> bytes:
        """Return the content of a member; raises as `blocks` does."""
        return b"".join(self.blocks(name))


def kind_of(data: bytes, name: str) -> str:  # noqa: ARG001 - members decide
    """Return the kind of document that a zip archive is; DocumentError with the reason when it is none."""
    archive = Archive(data)
    if "mimetype" in archive.names:
        mimetype = next(archive.blocks("mimetype"), b"")[:_MIMETYPE_BYTES].decode("latin-1").strip()
        for prefix, kind in _MIMETYPES:
            # Templates and master documents have a suffix: application/vnd.oasis.opendocument.text-template.
            if mimetype == prefix or mimetype.startswith(prefix + "-"):
                return kind
        if "opendocument" in mimetype:
            raise DocumentError(f"unsupported type: {mimetype}")
    if "[Content_Types].xml" in archive.names:
        if found := _MAIN_TYPE.search(archive.read("[Content_Types].xml")):
            return _MAIN_KINDS[found[1]]
        for part, kind in _MAIN_PARTS.items():
            if part in archive.names:
                return kind
    if "META-INF/container.xml" in archive.names:
        return "epub"
    raise DocumentError("unsupported type: zip archive")
