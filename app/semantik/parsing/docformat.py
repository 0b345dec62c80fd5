"""What the text of a Word document (.doc) needs of its formatting: headings, tables, hidden text.

Formatting stands in pages of 512 bytes (FKP) that tell, for stretches of the WordDocument stream, which
modifiers (SPRM) apply; [MS-DOC] 2.9.23, 2.9.33, 2.9.113 and 2.9.176.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_CHPX_TABLE = 0xFA
_PAPX_TABLE = 0x102
_PAGE_BYTES = 512

# Modifiers, by their names in [MS-DOC] 2.6.
_DELETED = 0x0800  # sprmCFRMarkDel
_VANISH = 0x083C  # sprmCFVanish
_IN_TABLE = 0x2416  # sprmPFInTable
_ROW_END = 0x2417  # sprmPFTtp
_INNER_CELL = 0x244B  # sprmPFInnerTableCell
_INNER_ROW_END = 0x244C  # sprmPFInnerTtp
_OUTLINE = 0x2640  # sprmPOutLvl
_TABLE_DEFINITION = 0xD608  # sprmTDefTable
_TABS = 0xC615  # sprmPChgTabs

# Bytes of the operand by the top three bits of a modifier; 6 tells it in a byte of its own.
_OPERAND_BYTES = (1, 1, 2, 4, 2, 2, 0, 3)

_KEPT = frozenset(b"\x07\x0b\x0c\x0d\x0e\x13\x14\x15")
_BLANK = bytes(byte if byte in _KEPT else 0 for byte in range(256))


@dataclass(frozen=True)
class Paragraph:
    """What the mark at the end of a paragraph says of it."""

    heading: bool = False
    in_table: bool = False
    row_end: bool = False
    inner_cell: bool = False  # of a table in a table, whose cells end in paragraph marks


_PLAIN = Paragraph()


class Formatting:
    """Paragraphs and hidden text of a document, by file position."""

    def __init__(self, paragraphs: list[tuple[int, int, Paragraph]], hidden: list[tuple[int, int]]) -> None:
        self._paragraphs = sorted(paragraphs, key=lambda paragraph: paragraph[0])
        self._starts = [paragraph[0] for paragraph in self._paragraphs]
        self._hidden = sorted(hidden)
        self._hidden_ends = [end for _, end in self._hidden]

    @classmethod
    def none(cls) -> Formatting:
        """Return the formatting of a document about which nothing is known."""
        return cls([], [])

    @classmethod
    def read(cls, stream: bytes, table: bytes) -> Formatting:
        """Read what the WordDocument stream and its table stream say; what is damaged is left out."""
        paragraphs = [
            (start, end, _paragraph(_papx(page, offset)))
            for start, end, page, offset in _runs(stream, table, _PAPX_TABLE, 13)
        ]
        hidden = [
            (start, end)
            for start, end, page, offset in _runs(stream, table, _CHPX_TABLE, 1)
            if offset and _is_hidden(page[offset + 1 : offset + 1 + page[offset]])
        ]
        return cls(paragraphs, hidden)

    @property
    def known(self) -> bool:
        """Whether `at` knows anything."""
        return bool(self._paragraphs)

    def at(self, position: int) -> Paragraph:
        """Return the paragraph around the byte at `position` of the stream."""
        index = bisect_right(self._starts, position) - 1
        if index >= 0 and position < self._paragraphs[index][1]:
            return self._paragraphs[index][2]
        return _PLAIN

    def without_hidden(self, raw: bytes, position: int, width: int) -> bytes:
        """Return `raw`, characters of `width` bytes at `position`, with NUL for hidden and deleted ones.

        Ends of paragraphs, cells and fields stay.
        """
        result = None
        for index in range(bisect_right(self._hidden_ends, position), len(self._hidden)):
            start, end = self._hidden[index]
            if start >= position + len(raw):
                break
            result = result or bytearray(raw)
            first = max(0, start - position) // width * width
            last = min(len(raw), end - position) // width * width
            if width == 1:
                result[first:last] = result[first:last].translate(_BLANK)
            else:
                characters = array("H", bytes(result[first:last]))
                blank = array("H", [char if char in _KEPT else 0 for char in characters])
                result[first:last] = blank.tobytes()
        return raw if result is None else bytes(result)


def _runs(stream: bytes, table: bytes, field: int, entry: int) -> Iterator[tuple[int, int, bytes, int]]:
    """Yield first FC, last FC, page, and offset in the page of the modifiers (0: none) for each run.

    `field` of the FIB tells where the table of pages is; an `entry` in a page takes so many bytes.
    """
    try:
        offset, size = struct.unpack_from("<2I", stream, field)
        count = max(0, (min(size, len(table) - offset) - 4) // 8)
        pages = struct.unpack_from(f"<{count}I", table, offset + 4 * (count + 1)) if count else ()
    except struct.error:
        return
    for number in pages:
        start = (number & 0x3FFFFF) * _PAGE_BYTES
        page = stream[start : start + _PAGE_BYTES]
        runs = page[-1] if len(page) == _PAGE_BYTES else 0
        if 4 * (runs + 1) + entry * runs >= _PAGE_BYTES:
            continue
        positions = struct.unpack_from(f"<{runs + 1}I", page)
        for index in range(runs):
            where = 2 * page[4 * (runs + 1) + entry * index]
            yield positions[index], positions[index + 1], page, where


def _papx(page: bytes, offset: int) -> bytes:
    """Return style and modifiers (GrpPrlAndIstd) at `offset` of a page, b"" where there are none."""
    if not offset or offset + 1 >= len(page):
        return b""
    size = page[offset]
    if size:
        return page[offset + 1 : offset + 2 * size]
    return page[offset + 2 : offset + 2 + 2 * page[offset + 1]]


@lru_cache(maxsize=4096)
def _paragraph(papx: bytes) -> Paragraph:
    if len(papx) < 2:
        return _PLAIN
    found = dict(_modifiers(papx[2:]))
    # Styles 1 to 9 are always heading 1 to heading 9 ([MS-DOC] 2.9.271).
    level = found.get(_OUTLINE, int.from_bytes(papx[:2], "little") - 1)
    return Paragraph(
        heading=0 <= level < 9,
        in_table=found.get(_IN_TABLE, 0) == 1,
        row_end=found.get(_ROW_END, 0) == 1 or found.get(_INNER_ROW_END, 0) == 1,
        inner_cell=found.get(_INNER_CELL, 0) == 1,
    )


@lru_cache(maxsize=4096)
def _is_hidden(modifiers: bytes) -> bool:
    return any(sprm in (_DELETED, _VANISH) and value & 1 for sprm, value in _modifiers(modifiers))


def _modifiers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each modifier with the first byte of its operand."""
    offset = 0
    while offset + 3 <= len(data):
        sprm = data[offset] | data[offset + 1] << 8
        first = data[offset + 2]
        yield sprm, first
        size = _OPERAND_BYTES[sprm >> 13]
        if sprm == _TABLE_DEFINITION:
            size = first + (data[offset + 3] << 8 if offset + 3 < len(data) else 0) + 1
        elif sprm == _TABS and first == 255:
            return  # a form without a length; no modifier behind it matters here
        elif not size:
            size = first + 1
        offset += 2 + size
