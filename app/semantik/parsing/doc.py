"""Word 97 to 2003 (.doc), and Word 6 and 95: the text without page headers; headings become sections.

Read by Microsoft's open specification [MS-DOC], whose terms are used here: the file information block (FIB)
at the start of the WordDocument stream says where the piece table is, and the piece table puts the text
together from stretches of 8-bit and 16-bit characters, in the order in which they are read. A character
position (CP) counts characters of the text, a file position (FC) bytes of the stream.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from semantik.exceptions import DocumentError
from semantik.parsing import limits, ole
from semantik.parsing.docformat import Formatting
from semantik.parsing.flow import Flow
from semantik.parsing.text import Text, guess

# The text's parts, one behind the other, by their sections. Those that are None are left out: page headers,
# which repeat, and a part that is always empty. The lengths of all stand together in the FIB.
_PARTS = ("", "footnotes", None, None, "comments", "endnotes", "text boxes")
_LENGTHS_97 = 0x4C
_LENGTHS_6 = 0x34
_TEXT_6 = 0x18
_ENVIRONMENT = 0x12
_CLX_97 = 0x1A2
_CLX_6 = 0x160
_FIRST_FIB_97 = 105

_ENCRYPTED = 0x0100
_TABLE_1 = 0x0200
_FAST_SAVED = 0x0004
_WIDE = 0x1000

# Code pages of the languages (the low ten bits of the FIB's lid) that Word 6 did not write in cp1252.
_LANGUAGES = {
    **dict.fromkeys((0x05, 0x0E, 0x15, 0x18, 0x1A, 0x1B, 0x1C, 0x24), "cp1250"),
    **dict.fromkeys((0x02, 0x19, 0x22, 0x23, 0x2F), "cp1251"),
    **dict.fromkeys((0x25, 0x26, 0x27), "cp1257"),
    0x08: "cp1253",
    0x1F: "cp1254",
    0x0D: "cp1255",
    0x01: "cp1256",
    0x1E: "cp874",
    0x2A: "cp1258",
    0x11: "cp932",
    0x04: "gbk",
    0x12: "cp949",
}

_SAMPLE_BYTES = 16 * 1024
_BEYOND_ASCII = bytes(range(0x80, 0x100))
_LETTERS = [bytes([letter]) for letter in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]

# Text, or one of the characters that stand for something else: ends of cell and row (7), line (B), page or
# section (C), paragraph (D) and column (E); start, separator and end of a field (13, 14, 15).
_TOKEN = re.compile("[^\x07\x0b-\x0e\x13-\x15]+|[\x07\x0b-\x0e\x13-\x15]")
# Pictures, anchors and the marks of notes; a hyphen that always shows and one that mostly does not.
_MARKS: dict[int, str | None] = {**dict.fromkeys(set(range(32)) - {9}), 0x1E: "\u2011", 0xAD: None}


@dataclass(frozen=True)
class _Piece:
    """A stretch of text: its CPs, the FC of its first character, the bytes that each character takes."""

    start: int
    end: int
    offset: int
    codec: str
    width: int


@dataclass(frozen=True)
class _Document:
    stream: bytes
    pieces: list[_Piece]
    lengths: tuple[int, ...]  # of the parts, in characters
    formatting: Formatting


def parse(data: bytes) -> Text:
    """Return the main text, then footnotes, comments, endnotes and text boxes, each a section.

    Paragraphs have a blank line between them, cells a tab, rows a line end. Codes of fields, hidden text and
    deleted text are left out. Raises DocumentError when the document is encrypted or broken.
    """
    with ole.opened(data) as file:
        stream = ole.stream(file, "WordDocument")
        try:
            version, language, flags = struct.unpack_from("<2xH2xH2xH", stream)
            if flags & _ENCRYPTED:
                raise DocumentError("encrypted Word document: a password is needed to open it")
            if version < _FIRST_FIB_97:
                document = _word_6(stream, flags, _codec(stream, language))
            else:
                document = _word_97(stream, ole.stream(file, "1Table" if flags & _TABLE_1 else "0Table"))
        except struct.error as error:
            raise DocumentError("broken Word document: its tables end early") from error
    return _write(document)


def _word_97(stream: bytes, table: bytes) -> _Document:
    pieces = []
    for start, end, offset in _piece_table(table, *struct.unpack_from("<2I", stream, _CLX_97)):
        # Bit 30: characters of one byte, at half of the position.
        compressed = bool(offset & 0x40000000)
        offset &= 0x3FFFFFFF
        pieces.append(
            _Piece(start, end, offset // 2, "cp1252", 1)
            if compressed
            else _Piece(start, end, offset, "utf-16-le", 2)
        )
    lengths = struct.unpack_from(f"<{len(_PARTS)}i", stream, _LENGTHS_97)
    return _Document(stream, pieces, lengths, Formatting.read(stream, table))


def _word_6(stream: bytes, flags: int, codec: str) -> _Document:
    width = 2 if flags & _WIDE else 1
    codec = "utf-16-le" if flags & _WIDE else codec
    if flags & _FAST_SAVED:
        table = _piece_table(stream, *struct.unpack_from("<2I", stream, _CLX_6))
        pieces = [_Piece(start, end, offset, codec, width) for start, end, offset in table]
    else:
        first, last = struct.unpack_from("<2I", stream, _TEXT_6)
        pieces = [_Piece(0, max(0, last - first) // width, first, codec, width)]
    lengths = struct.unpack_from(f"<{len(_PARTS)}i", stream, _LENGTHS_6)
    return _Document(stream, pieces, lengths, Formatting.none())


def _codec(stream: bytes, language: int) -> str:
    """Name the encoding of 8-bit text in Word 6; the language of the program, not always of the text."""
    if stream[_ENVIRONMENT] == 1:
        return "mac_roman"
    if language & 0x3FF in _LANGUAGES:
        return _LANGUAGES[language & 0x3FF]
    first, last = struct.unpack_from("<2I", stream, _TEXT_6)
    sample = stream[first:last][:_SAMPLE_BYTES].translate(None, bytes(range(32)))
    # More than every sixth letter beyond ASCII is no language of western Europe; a few letters tell nothing.
    foreign = len(sample) - len(sample.translate(None, _BEYOND_ASCII))
    letters = sum(sample.count(letter) for letter in _LETTERS) + foreign
    return guess(sample) if foreign > 8 and foreign * 6 > letters else "cp1252"


def _piece_table(stream: bytes, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield first CP, last CP and FC of each piece; the table is in the Clx at `offset`."""
    end = min(offset + size, len(stream))
    while offset < end and stream[offset] == 1:  # formatting (Prc) comes first
        offset += 3 + max(0, struct.unpack_from("<h", stream, offset + 1)[0])
    if offset >= end or stream[offset] != 2:
        raise DocumentError("broken Word document: no piece table")
    size = struct.unpack_from("<I", stream, offset + 1)[0]
    count = (min(size, end - offset - 5) - 4) // 12
    if count < 1:
        raise DocumentError("broken Word document: an empty piece table")
    positions = struct.unpack_from(f"<{count + 1}I", stream, offset + 5)
    for index in range(count):
        (fc,) = struct.unpack_from("<I", stream, offset + 5 + 4 * (count + 1) + 8 * index + 2)
        yield positions[index], positions[index + 1], fc


def _write(document: _Document) -> Text:
    flow = Flow()
    start = missing = 0
    for label, length in zip(_PARTS, document.lengths, strict=True):
        end = start + max(0, length)
        if label is not None and end > start:
            missing += _part(document, start, end, label, flow)
        start = end
    text = flow.text()
    note = f"{missing} characters are missing: the file ends early" if missing else None
    return Text(text, flow.sections, note if text else note or "no text")


def _part(document: _Document, first: int, last: int, label: str, flow: Flow) -> int:
    """Write the CPs from `first` to `last`; return how many of them the file does not have."""
    stretches: list[tuple[str, int, int]] = []  # text, FC of its first character, bytes per character
    missing = 0
    for piece in document.pieces:
        start, end = max(piece.start, first), min(piece.end, last)
        if start >= end:
            continue
        offset = piece.offset + (start - piece.start) * piece.width
        raw = document.stream[offset : offset + (end - start) * piece.width]
        missing += end - start - len(raw) // piece.width
        limits.spend(len(raw))  # many pieces may tell of the same bytes
        shown = document.formatting.without_hidden(raw, offset, piece.width)
        stretches.append((shown.decode(piece.codec, "replace"), offset, piece.width))
    text = _Writer(document.formatting, flow)
    # A field without an end, in a damaged file, must not hide the rest of the text.
    text.fields = sum(s.count("\x13") - s.count("\x15") for s, *_ in stretches) == 0
    if label:
        flow.section(label)
    for stretch in stretches:
        text.write(*stretch)
    flow.end_paragraph()
    return missing


class _Writer:
    """Turns the characters of one part into text."""

    def __init__(self, formatting: Formatting, flow: Flow) -> None:
        self.fields = True
        self._formatting = formatting
        self._flow = flow
        self._codes: list[bool] = []  # of each open field: is it the code that is read, or the result?
        self._row_ended = False
        self._before = ""

    def write(self, text: str, position: int, width: int) -> None:
        """Write a stretch whose first character is at the FC `position`."""
        for match in _TOKEN.finditer(text):
            mark = match[0]
            if mark in "\x13\x14\x15":
                self._field(mark)
            elif not any(self._codes):
                if mark in "\x07\x0b\x0c\r\x0e":
                    self._end(mark, position)
                else:
                    self._text(mark, position)
                self._before = mark
            if width == 1 or mark.isascii():
                position += width * len(mark)
            else:  # characters beyond U+FFFF take four bytes
                position += len(mark.encode("utf-16-le", "surrogatepass"))

    def _field(self, mark: str) -> None:
        if not self.fields:
            return
        if mark == "\x13":
            self._codes.append(True)
        elif self._codes and mark == "\x14":
            self._codes[-1] = False
        elif self._codes:
            self._codes.pop()

    def _text(self, mark: str, position: int) -> None:
        if self._row_ended and not self._formatting.at(position).in_table:
            self._flow.end_paragraph()
            self._row_ended = False
        self._flow.write(mark.translate(_MARKS))

    def _end(self, mark: str, position: int) -> None:
        flow = self._flow
        if mark in "\x0b\x0e":
            flow.end_line()
            return
        paragraph = self._formatting.at(position)
        known = self._formatting.known
        if paragraph.row_end or (not known and mark == self._before == "\x07"):
            flow.end_paragraph(lines=1)
            self._row_ended = known
        elif mark == "\x07" or paragraph.inner_cell:
            flow.end_cell()
        elif paragraph.in_table:
            flow.end_line()
        else:
            flow.end_paragraph(heading=paragraph.heading)
