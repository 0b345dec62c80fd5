"""One file per format: bytes in, text and sections out. Runs in the parser process alone, imports nothing
heavy.

A format is a module with `parse(data: bytes) -> Text`; KINDS below names it. Its library is imported when the
first document of the kind arrives, so that a parser starts fast. A format that holds documents of other
formats gives them to `parse_inner`.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import PurePath

from semantik.exceptions import DocumentError
from semantik.parsing import limits
from semantik.parsing.text import Text, looks_like_text

#: kind -> module that parses it.
KINDS = {
    "pdf": "semantik.parsing.pdf",
    "html": "semantik.parsing.html",
    "markdown": "semantik.parsing.markdown",
    "text": "semantik.parsing.text",
    "docx": "semantik.parsing.docx",
    "pptx": "semantik.parsing.pptx",
    "xlsx": "semantik.parsing.xlsx",
    "odt": "semantik.parsing.odt",
    "odp": "semantik.parsing.odt",
    "ods": "semantik.parsing.odt",
    "epub": "semantik.parsing.epub",
    "doc": "semantik.parsing.doc",
    "rtf": "semantik.parsing.rtf",
    "email": "semantik.parsing.email",
    "csv": "semantik.parsing.csv",
}

# Formats that hold one document, which counts in their place: modules with
# `unwrap(data: bytes, name: str) -> tuple[bytes, str]`, its content and name.
_WRAPPERS = {"gzip": "semantik.parsing.gzip"}

# Formats that begin with bytes of their own.
_MAGIC: tuple[tuple[bytes, str], ...] = ((b"{\\rtf", "rtf"), (b"\x1f\x8b", "gzip"))

# Containers whose members decide: modules with `kind_of(data: bytes, name: str) -> str`, which raise
# DocumentError for members that no format has.
_CONTAINERS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "semantik.parsing.archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "semantik.parsing.ole"),
)

# Text whose format its content does not show.
_NAMES = {
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".eml": "email",
    ".mbox": "email",
}

# Formats that their content always shows: a name that says otherwise is wrong, and the reader should know.
_BINARY = {
    ".pdf": "a PDF",
    ".docx": "a DOCX",
    ".docm": "a DOCM",
    ".pptx": "a PPTX",
    ".pptm": "a PPTM",
    ".xlsx": "an XLSX",
    ".xlsm": "an XLSM",
    ".xlsb": "an XLSB",
    ".odt": "an ODT",
    ".odp": "an ODP",
    ".ods": "an ODS",
    ".epub": "an EPUB",
}

# What to call the common formats that are not parsed, so that the reason names them.
_UNSUPPORTED = (
    (b"PK\x05\x06", "zip archive"),
    (b"\xdb\xa5-\x00", "Word 2 document"),
    (b"BZh91AY&SY", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"(\xb5/\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"\x7fELF", "ELF program"),
    (b"\x89PNG\r\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"%!PS", "PostScript"),
    (b"SQLite format 3\x00", "SQLite database"),
)

_HTML_START = re.compile(
    # A comment ends at the first "-->": one that may go on would be tried in 2^n ways for n comments.
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html|head|body)[\s>]",
    re.IGNORECASE | re.DOTALL,
)

# A header of a mail, or the line that starts one in an mbox.
_HEADER_START = re.compile(rb"From |[A-Za-z][!-9;-~]{1,80}:")

# PDF readers accept the magic anywhere in the first kilobyte (ISO 32000-1, annex H.3.4.1, implementation note
# 13).
_PDF_MAGIC_WITHIN = 1024

_TAR_MAGIC_AT = 257

_CLEAN = str.maketrans({"\x00": " "})
_SURROGATE = re.compile("[\ud800-\udfff]")


def kind_of(data: bytes, name: str) -> str:
    """Return the kind of a document: by its content where that is plain, by its name otherwise.

    Raises DocumentError when it is of no kind that can be parsed.
    """
    head = data[:4096]
    # Behind other bytes it may also be in a text about PDF, which has no objects.
    if head.startswith(b"%PDF-") or (
        b"%PDF-" in head[:_PDF_MAGIC_WITHIN] and (b"endobj" in data or not looks_like_text(data))
    ):
        return "pdf"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    for magic, module in _CONTAINERS:
        if head.startswith(magic):
            inside: str = import_module(module).kind_of(data, name)
            return inside
    for magic, what in _UNSUPPORTED:
        if head.startswith(magic):
            raise DocumentError(f"unsupported type: {what}")
    # A byte order mark may stand before the first tag; UTF-16 documents are known by their name.
    if _HTML_START.match(head.removeprefix(b"\xef\xbb\xbf")):
        return "html"
    if _HEADER_START.match(head) and import_module(KINDS["email"]).looks_like_email(head):
        return "email"
    suffix = PurePath(name).suffix.lower()
    if suffix in _BINARY and data:
        raise DocumentError(f"not {_BINARY[suffix]}: named {suffix}, but the content is something else")
    if data[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":  # of texts it reads as text with a few NULs
        raise DocumentError("unsupported type: tar archive")
    if not looks_like_text(data):
        raise DocumentError("unsupported type: binary data")
    return _NAMES.get(suffix, "text")


def parse(data: bytes, name: str) -> tuple[str, Text]:
    """Return the kind and the text of a document; `name` decides only where the content does not.

    The text holds no NUL and no lone surrogate (PostgreSQL refuses both); they are replaced one for one, so
    that section offsets stay right. Raises DocumentError with the reason when the document cannot be read, or
    unpacks to more than `limits` allows.
    """
    with limits.document(len(data)):
        return _parse(data, name)


def parse_inner(data: bytes, name: str) -> tuple[str, Text]:
    """Do the same for a document inside of the one that is being parsed, such as an attachment.

    It shares the outer document's limits; DocumentError when the layers are more than `limits.MAX_DEPTH`.
    """
    with limits.inner(name):
        return _parse(data, name)


def _parse(data: bytes, name: str) -> tuple[str, Text]:
    kind = kind_of(data, name)
    if kind in _WRAPPERS:
        return parse_inner(*import_module(_WRAPPERS[kind]).unwrap(data, name))
    result: Text = import_module(KINDS[kind]).parse(data)
    clean = _SURROGATE.sub("\ufffd", result.text.translate(_CLEAN) if "\x00" in result.text else result.text)
    sections = [
        (offset, _SURROGATE.sub("\ufffd", label.translate(_CLEAN))) for offset, label in result.sections
    ]
    return kind, Text(clean, sections, result.note)
