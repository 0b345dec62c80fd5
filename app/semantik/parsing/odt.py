"""OpenDocument: texts (.odt), presentations (.odp) and spreadsheets (.ods), by one reader.

Headings, slides and sheets become sections. Footnotes follow the paragraph that refers to them; comments,
headers and footers come last. Deleted passages, hidden passages and hidden sheets are not text. A
spreadsheet's cells read as they are shown, dates and numbers in the author's format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from semantik.exceptions import DocumentError
from semantik.parsing import xml
from semantik.parsing.archive import Archive
from semantik.parsing.blocks import Blocks, append_section
from semantik.parsing.flow import Flow
from semantik.parsing.text import Text

_XMLNS = "urn:oasis:names:tc:opendocument:xmlns:"
_NAMES = xml.Names(
    {
        f"{_XMLNS}{word}:1.0": f"{word}:"
        for word in ("office", "style", "text", "table", "drawing", "presentation")
    }
)
_attribute = _NAMES.attribute

# Their content is not shown, or is the mark of a note rather than its text.
_SKIPPED = frozenset({"text:tracked-changes", "text:note-citation", "text:ruby-text", "office:forms"})
_MARGINS = frozenset(
    f"style:{where}{which}" for where in ("header", "footer") for which in ("", "-left", "-first")
)
# What a style hides its passages or sheets by.
_HIDING = {
    "style:text-properties": (f"{{{_XMLNS}text:1.0}}display", "none"),
    "style:table-properties": (f"{{{_XMLNS}table:1.0}}display", "false"),
}
_SPACE = re.compile(r"[ \t\r\n]+")
_MANIFEST = "META-INF/manifest.xml"
# An empty cell may stand for all that are left of its row, and a row for all that are left of its sheet.
_MAX_TIMES = 1_000


def parse(data: bytes) -> Text:
    """Return the text of an OpenDocument file; DocumentError when it is broken or encrypted."""
    archive = Archive(data)
    if _MANIFEST in archive.names and b"encryption-data" in archive.read(_MANIFEST):
        raise DocumentError("encrypted OpenDocument file: a password is needed to open it")
    if "content.xml" not in archive.names:
        raise DocumentError("broken OpenDocument file: content.xml is missing")
    content = _Content()
    xml.read(archive.blocks("content.xml"), content, "content.xml")
    flow = content.flow
    append_section(flow, "comments", content.comments.text())
    # A spreadsheet has some for its print, mostly those that it came with.
    if content.paged and "styles.xml" in archive.names:
        margins = _Margins()
        xml.read(archive.blocks("styles.xml"), margins, "styles.xml")
        # Pages of several kinds mostly share theirs.
        distinct = dict.fromkeys(margins.flow.text().split("\n\n"))
        append_section(flow, "headers and footers", "\n\n".join(distinct))
    text = flow.text()
    notes = [] if text else ["no visible text"]
    if content.hidden:
        notes.append(f"{content.hidden} hidden sheet{'s' if content.hidden > 1 else ''} not read")
    return Text(text, flow.sections, "; ".join(notes) or None)


class _Reader(xml.Events):
    """Writes paragraphs and tables to the blocks at hand."""

    def __init__(self) -> None:
        self.flow = Flow()
        self.blocks = Blocks(self.flow)
        self._skipping = 0
        self._paragraphs: list[str] = []  # names of the open ones
        self._times: list[int] = []  # of the open rows

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = _NAMES[tag]
        if self._skipping or name in _SKIPPED or self.hides(name, attributes):
            self._skipping += 1
            return
        self.begin(name, attributes)

    def end(self, tag: str) -> None:
        if self._skipping:
            self._skipping -= 1
            return
        self.finish(_NAMES[tag])

    def data(self, words: str) -> None:
        if self._paragraphs and not self._skipping:
            self.blocks.write(_SPACE.sub(" ", words))

    def hides(self, name: str, attributes: Mapping[str, str]) -> bool:
        """Say whether the element is one that a reader does not see."""
        return name == "text:section" and _attribute(attributes, "text:display") == "none"

    def begin(self, name: str, attributes: Mapping[str, str]) -> None:
        """Begin an element that is shown."""
        if name in ("text:p", "text:h"):
            self._paragraphs.append(name)
            self.blocks.open_paragraph()
        elif name == "text:s":
            self.blocks.write(" " * _times(attributes, "text:c"))
        elif name == "text:tab":
            self.blocks.write("\t")
        elif name == "text:line-break":
            self.blocks.write("\n")
        elif name == "table:table":
            self.blocks.open_table()
        elif name == "table:table-row":
            self._times.append(_times(attributes, "table:number-rows-repeated"))
            self.blocks.open_row()
        elif name in ("table:table-cell", "table:covered-table-cell"):
            self.blocks.open_cell(_times(attributes, "table:number-columns-repeated"))

    def finish(self, name: str) -> None:
        """End an element that is shown."""
        if name in ("text:p", "text:h"):
            self._paragraphs.pop()
            self.blocks.close_paragraph(heading=name == "text:h")
        elif name == "table:table":
            self.blocks.close_table()
        elif name == "table:table-row":
            self.blocks.close_row(self._times.pop())


class _Content(_Reader):
    """Reads content.xml: its styles, then a text, slides or sheets."""

    def __init__(self) -> None:
        super().__init__()
        self.comments = Flow()
        self.hidden = 0  # sheets
        self.paged = False  # whether it is a text
        self._outer: list[
            tuple[Blocks, list[str]]
        ] = []  # what is interrupted by a comment, a slide or a sheet
        self._style = ""
        self._unseen: set[str] = set()  # styles of hidden passages and sheets
        self._tables = 0
        self._sheets = False
        self._slide = 0
        self._title = self._notes = Flow()
        self._label = ""

    def hides(self, name: str, attributes: Mapping[str, str]) -> bool:
        """Say whether the element is one that a reader does not see."""
        if name == "text:span":
            return _attribute(attributes, "text:style-name") in self._unseen
        if name == "table:table" and _attribute(attributes, "table:style-name") in self._unseen:
            self.hidden += self._sheets and not self._tables
            return True
        return super().hides(name, attributes)

    def begin(self, name: str, attributes: Mapping[str, str]) -> None:
        """Begin an element that is shown."""
        if name == "style:style":
            self._style = _attribute(attributes, "style:name") or ""
        elif name in _HIDING and _HIDING[name] in attributes.items():
            self._unseen.add(self._style)
        elif name == "office:text":
            self.paged = True
        elif name == "office:spreadsheet":
            self._sheets = True
        elif name == "office:annotation":
            self._interrupt(self.comments)
        elif name == "drawing:page":
            self._slide += 1
            self._title, self._notes = Flow(), Flow()
            self._interrupt(Flow())
        elif name == "presentation:notes":
            self._interrupt(self._notes)
        elif name == "drawing:frame" and _attribute(attributes, "presentation:class") == "title":
            self._interrupt(self._title)
        elif name == "drawing:frame":
            self._interrupt(None)
        elif name == "table:table":
            self._tables += 1
            if self._sheets and self._tables == 1:
                self._label = _attribute(attributes, "table:name") or ""
                self._interrupt(Flow())
        super().begin(name, attributes)

    def finish(self, name: str) -> None:
        """End an element that is shown."""
        super().finish(name)
        if name in ("office:annotation", "presentation:notes", "drawing:frame"):
            self._resume()
        elif name == "drawing:page":
            body = self._resume().text()
            title = " ".join(self._title.text().split())
            label = f"slide {self._slide}"
            words = "\n\n".join(filter(None, (title, body)))
            append_section(self.flow, f"{label}: {title}" if title else label, words)
            append_section(self.flow, f"{label}: notes", self._notes.text())
        elif name == "table:table":
            self._tables -= 1
            if self._sheets and not self._tables:
                append_section(self.flow, f"sheet {self._label}", self._resume().text())

    def _interrupt(self, flow: Flow | None) -> None:
        """Write to `flow` until `_resume`; None goes on with what is at hand."""
        self._outer.append((self.blocks, self._paragraphs))
        if flow is not None:
            self.blocks = Blocks(flow)
            self._paragraphs = []

    def _resume(self) -> Flow:
        inner = self.blocks.flow
        self.blocks, self._paragraphs = self._outer.pop()
        return inner


class _Margins(_Reader):
    """Reads the headers and footers of styles.xml."""

    def __init__(self) -> None:
        super().__init__()
        self._inside = 0

    def hides(self, name: str, attributes: Mapping[str, str]) -> bool:
        """Say whether the element is one that a reader does not see."""
        return super().hides(name, attributes) or (
            name in _MARGINS and _attribute(attributes, "style:display") == "false"
        )

    def begin(self, name: str, attributes: Mapping[str, str]) -> None:
        """Begin an element that is shown."""
        self._inside += name in _MARGINS
        if self._inside:
            super().begin(name, attributes)

    def finish(self, name: str) -> None:
        """End an element that is shown."""
        if self._inside:
            super().finish(name)
        self._inside -= name in _MARGINS


def _times(attributes: Mapping[str, str], name: str) -> int:
    value = _attribute(attributes, name) or "1"
    return max(1, min(int(value[:9]), _MAX_TIMES)) if value.isdecimal() else 1
