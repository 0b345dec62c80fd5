"""XLSX: one section per sheet, a line per row, tabs between cells. Reads .xlsx, .xlsm, .xltx, .xlsb and .xls.

Hidden sheets are not read, and the note says so: what an author hid is not what a search should show. A date
is written as ISO 8601 has it, a whole number without a fraction.
"""

from __future__ import annotations

import datetime
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import python_calamine

from semantik.exceptions import DocumentError
from semantik.parsing.archive import Archive
from semantik.parsing.flow import Flow
from semantik.parsing.text import Text

#: Cells that a sheet may span. The library holds the whole rectangle, at some 100 bytes a cell: one value in
#: the last cell that a sheet can have would take more memory than any machine has, and end the parser.
MAX_CELLS = 8_000_000

_MAX_ROW = 1_048_576
_MAX_COLUMN_LETTERS = 3
# References of rows (5) and cells (C5), which all programs write as the first attribute. The row in a cell's
# matters where it is large, for the few programs that number no rows.
_ROW = re.compile(rb"row r=[\"'](\d+)")
_CELL = re.compile(rb"c r=[\"']([A-Z]+(?:\d{6,})?)")
_DIGITS = b"0123456789"
_OVERLAP_BYTES = 40  # a reference that lies across two blocks is whole in the second


def parse(data: bytes) -> Text:
    """Return the text of a workbook's visible sheets; DocumentError when it is broken or encrypted."""
    if data.startswith(b"PK"):
        _check(data)
    try:
        workbook = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        flow = Flow()
        hidden = 0
        for sheet in workbook.sheets_metadata:
            if sheet.typ != python_calamine.SheetTypeEnum.WorkSheet:
                continue
            if sheet.visible != python_calamine.SheetVisibleEnum.Visible:
                hidden += 1
                continue
            _write(flow, sheet.name, workbook.get_sheet_by_name(sheet.name))
    except python_calamine.PasswordError as error:
        raise DocumentError("encrypted workbook: a password is needed to open it") from error
    except python_calamine.CalamineError as error:
        raise DocumentError(f"broken workbook: {error}") from error
    except BaseException as error:
        # How a panic of the library in Rust arrives; it is not an Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise DocumentError(f"broken workbook: {error}") from error
    text = flow.text()
    notes = [] if text else ["no visible text"]
    if hidden:
        notes.append(f"{hidden} hidden sheet{'s' if hidden > 1 else ''} not read")
    return Text(text, flow.sections, "; ".join(notes) or None)


def _write(flow: Flow, name: str, sheet: python_calamine.CalamineSheet) -> None:
    titled = False
    for row in sheet.iter_rows():
        words = "\t".join([_WRITERS.get(type(value), str)(value) for value in row]).rstrip("\t")
        if not words:
            continue
        if not titled:
            flow.section(f"sheet {name}")
            titled = True
        # An empty cell in front is a place in the row, and stays.
        flow.write(words)
        flow.end_paragraph(lines=1)
    flow.end_paragraph()


def _text(value: str) -> str:
    return " ".join(value.split())


def _boolean(value: bool) -> str:
    return "TRUE" if value else "FALSE"


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _moment(value: datetime.datetime) -> str:
    midnight = value.time() == datetime.time()
    return value.date().isoformat() if midnight else value.isoformat(" ", "seconds")


# By type, since a sheet may have millions of cells; what is not here (dates, durations) is written by str.
_WRITERS: dict[type, Callable[[Any], str]] = {
    str: _text,
    bool: _boolean,
    float: _number,
    datetime.datetime: _moment,
}


def _check(data: bytes) -> None:
    """Unpack what the library will unpack, within the limits that it does not have."""
    archive = Archive(data)
    for name in archive.names:
        if not name.endswith((".xml", ".bin", ".rels")) or "/media/" in name:
            continue
        if name.endswith("sharedStrings.xml"):
            for _ in archive.blocks(name):
                pass
        else:
            _check_span(archive, name)


def _check_span(archive: Archive, name: str) -> None:
    columns: set[bytes] = set()
    height = 0
    for block in _overlapping(archive.blocks(name)):
        rows = set(_ROW.findall(block))
        for cell in set(_CELL.findall(block)):
            column = cell.rstrip(_DIGITS)
            columns.add(column)
            rows.add(cell[len(column) :] or b"1")
        height = max(height, *(int(row[:20]) for row in rows)) if rows else height
    letters = max(columns, key=lambda column: (len(column), column), default=b"")
    if height > _MAX_ROW or len(letters) > _MAX_COLUMN_LETTERS:
        raise DocumentError(f"broken workbook: {name} has a cell beyond the last that a sheet can have")
    width = 0
    for letter in letters:
        width = width * 26 + letter - ord("A") + 1
    if height * width > MAX_CELLS:
        raise DocumentError(
            f"workbook too sparse to be read: {name} spans {height} rows and {width} columns, "
            f"more than {MAX_CELLS} cells"
        )


def _overlapping(blocks: Iterator[bytes]) -> Iterator[bytes]:
    end = b""
    for block in blocks:
        yield end + block
        end = block[-_OVERLAP_BYTES:]
