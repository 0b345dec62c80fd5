"""Text that is written piece by piece, with the offsets of its headings; for formats that flow."""

from __future__ import annotations

_LABEL_CHARACTERS = 200


class Flow:
    """Collects text: line ends are owed until something follows them, and never more than a blank line."""

    def __init__(self) -> None:
        self.sections: list[tuple[int, str]] = []
        self._parts: list[str] = []
        self._length = 0
        self._owed = 0  # line ends
        self._tabs = 0  # cells that have ended
        self._label = ""  # of the section that starts with the next text
        # Where the paragraph at hand begins, in characters and in parts; None until it has text.
        self._paragraph: tuple[int, int] | None = None

    def write(self, words: str) -> None:
        """Append text as it is."""
        if not words:
            return
        if self._owed and self._parts:
            self._append("\n" * self._owed)
        self._owed = 0
        if self._tabs:
            self._append("\t" * self._tabs)
            self._tabs = 0
        if self._label and not words.isspace():
            self.sections.append((self._length, self._label))
            self._label = ""
        if self._paragraph is None:
            self._paragraph = (self._length, len(self._parts))
        self._append(words)

    def end_line(self) -> None:
        """Owe a line end; two make a blank line."""
        self._owed = min(2, self._owed + 1)
        self._tabs = 0

    def end_cell(self) -> None:
        """Owe a tab; the last cell of a row has none behind it."""
        self._owed = 0 if self._paragraph is not None else self._owed
        self._tabs += 1

    def end_paragraph(self, *, heading: bool = False, lines: int = 2) -> None:
        """Owe `lines` line ends; a paragraph that is a heading becomes a section."""
        if heading and self._paragraph is not None:
            start, part = self._paragraph
            if label := " ".join("".join(self._parts[part:]).split()):
                self.sections.append((start, label[:_LABEL_CHARACTERS]))
        self._paragraph = None
        self._tabs = 0
        self._owed = max(self._owed, lines)

    def section(self, label: str) -> None:
        """Start a section, and a paragraph, at the next text that shows."""
        self.end_paragraph()
        self._label = label[:_LABEL_CHARACTERS]

    def text(self) -> str:
        """Return what was written."""
        return "".join(self._parts)

    def _append(self, part: str) -> None:
        self._parts.append(part)
        self._length += len(part)
