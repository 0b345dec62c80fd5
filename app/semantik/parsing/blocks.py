"""Paragraphs and tables as office formats nest them, written out in reading order."""

from __future__ import annotations

from semantik.parsing.flow import Flow
from semantik.parsing.limits import spend


class Blocks:
    """Writes paragraphs apart by a blank line; a table's rows by lines and its cells by tabs.

    A paragraph inside of a paragraph (a text box, a footnote) follows the one that it is anchored in. What is
    inside of a table's cell stays in that cell, whatever it is.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._open: list[list[str]] = []  # the paragraphs at hand, the outermost first
        self._after: list[str] = []  # what follows the outermost
        self._tables: list[bool] = []  # open tables, and whether each is written as rows
        self._row: list[list[str]] | None = None  # the cells of the row at hand
        self._times: list[int] = []  # how often each cell stands in it

    def open_paragraph(self) -> None:
        """Begin a paragraph."""
        self._open.append([])

    def write(self, words: str) -> None:
        """Append text to the paragraph at hand; without one it is no text that a reader sees."""
        if self._open:
            self._open[-1].append(words)

    def follow(self, words: str) -> None:
        """Put a paragraph behind the one at hand."""
        self._after.append(words)

    def close_paragraph(self, *, heading: bool = False) -> None:
        """End the paragraph at hand."""
        if not self._open:
            return
        words = "".join(self._open.pop()).strip()
        if self._open:
            self._after.append(words)
            return
        self.paragraph(words, heading=heading)
        after, self._after = self._after, []
        for words in after:
            self.paragraph(words)

    def paragraph(self, words: str, *, heading: bool = False) -> None:
        """Write a whole paragraph."""
        if not words:
            return
        if self._row:
            self._row[-1].append(words)
            return
        self.flow.write(words)
        self.flow.end_paragraph(heading=heading)

    def open_table(self) -> None:
        """Begin a table; inside of a paragraph or of another table its words are kept, but not its form."""
        self._tables.append(not self._open and not any(self._tables))

    def close_table(self) -> None:
        """End a table."""
        if self._tables and self._tables.pop():
            self.flow.end_paragraph()

    def open_row(self) -> None:
        """Begin a row."""
        if self._as_rows():
            self._row = []
            self._times = []

    def open_cell(self, times: int = 1) -> None:
        """Begin a cell that stands `times` times beside itself."""
        if self._as_rows() and self._row is not None:
            self._row.append([])
            self._times.append(times)

    def close_row(self, times: int = 1) -> None:
        """Write the row at hand `times` times; repeated words count as unpacked ones."""
        if not self._as_rows() or self._row is None:
            return
        row, self._row = self._row, None
        if len(row) == 1 and self._times == [1]:
            # A table of one column is a frame around paragraphs.
            words = "\n".join(row[0])
        else:
            words = "\t".join(self._cells(row)).rstrip("\t")
        if not words.strip():
            return
        spend(len(words) * (times - 1))
        for _ in range(times):
            self.flow.write(words)
            self.flow.end_paragraph(lines=1)

    def _cells(self, row: list[list[str]]) -> list[str]:
        cells: list[str] = []
        for cell, times in zip(row, self._times, strict=True):
            words = " ".join(" ".join(cell).split())
            spend(len(words) * (times - 1))
            cells += [words] * times
        return cells

    def _as_rows(self) -> bool:
        return bool(self._tables) and self._tables[-1]


def append_section(flow: Flow, label: str, words: str) -> None:
    """Write `words` as a section of its own, if there are any."""
    if words:
        flow.section(label)
        flow.write(words)
        flow.end_paragraph()
