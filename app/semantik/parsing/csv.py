"""CSV and TSV: a row becomes a line with tabs between its cells.

Cells of a row stay together, since a question mostly names one and wants another. The header is not repeated
in front of each value, which would double the tokens of a table of numbers; the label of each section has it,
so that a hit tells which columns it shows.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator

from semantik.parsing.text import Text, decode

_DELIMITERS = ",;\t|"
_SNIFF_CHARACTERS = 64 * 1024
_SNIFF_ROWS = 100
_LABEL_CHARACTERS = 200
#: Rows of a section.
_SECTION_ROWS = 100
#: A cell of more characters that goes over line ends was opened by a stray quote.
_CELL_CHARACTERS = 100_000
_SAID = re.compile(r"sep=(.)\n", re.IGNORECASE)
_IN_CELL = str.maketrans("\n\t", "  ")

# A cell of any size is text.
csv.field_size_limit(sys.maxsize)


def parse(data: bytes) -> Text:
    """Return the rows with a tab between cells and a section "rows 1 to 100: its columns" for each hundred.

    Line ends and tabs in a cell become spaces; empty rows are left out. Nothing that is text is refused: a
    quote that is never closed is a character like others.
    """
    text = decode(data)
    start = 0
    if said := _SAID.match(text):  # how Excel names the delimiter
        delimiter, start = said[1], said.end()
    else:
        delimiter = _delimiter(text[:_SNIFF_CHARACTERS])
    return (
        _read(text, start, delimiter, csv.QUOTE_MINIMAL)
        or _read(text, start, delimiter, csv.QUOTE_NONE)
        or Text("")
    )


def _read(text: str, start: int, delimiter: str, quoting: int) -> Text | None:
    """Return the table; None when a quote is taken for one that opens a cell, and never closes."""
    parts: list[str] = []  # of a section each: a list of the rows would take several times the text
    sections: list[tuple[int, str]] = []
    lines: list[str] = []
    length = rows = 0
    header = ""

    def end_section() -> None:
        nonlocal length, lines
        if lines:
            place = f"rows {rows - len(lines) + 1} to {rows}"
            sections.append((length, (f"{place}: {header}" if header else place)[:_LABEL_CHARACTERS]))
            parts.append("\n".join(lines))
            length += len(parts[-1]) + 1
            lines = []

    for cells in csv.reader(_lines(text, start), delimiter=delimiter, quoting=quoting):  # type: ignore[arg-type]
        if quoting != csv.QUOTE_NONE and any(len(cell) > _CELL_CHARACTERS and "\n" in cell for cell in cells):
            return None
        line = "\t".join(cells)
        if "\n" in line or line.count("\t") >= len(cells):
            line = "\t".join([cell.strip().translate(_IN_CELL) for cell in cells])
        line = line.rstrip("\t")
        if not line:
            continue
        if not rows and len(cells) > 1:
            header = ", ".join(line.split("\t"))
        lines.append(line)
        rows += 1
        if len(lines) == _SECTION_ROWS:
            end_section()
    end_section()
    return Text("\n".join(parts), sections, None if parts else "no rows")


def _delimiter(sample: str) -> str:
    """Return the delimiter that cuts the most rows of the sample into the same number of cells."""
    best, best_score = ",", 0.0
    for delimiter in _DELIMITERS:
        if delimiter not in sample:
            continue
        counts: list[int] = []
        for cells in csv.reader(_lines(sample, 0), delimiter=delimiter):
            counts.append(len(cells))
            if len(counts) == _SNIFF_ROWS:
                break
        usual = max(set(counts), key=lambda count: (counts.count(count), count))
        # Rows that are cut alike; of two delimiters that cut alike, the one that makes more cells.
        score = counts.count(usual) / len(counts) * (1 - 1 / (usual or 1))
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _lines(text: str, position: int) -> Iterator[str]:
    while position < len(text):
        stop = text.find("\n", position) + 1 or len(text)
        yield text[position:stop]
        position = stop
