"""DOCX: paragraphs, tables, notes and text boxes as a reader sees them; headings become sections.

What is not shown is not text: deleted and moved-away passages, field codes, hidden runs. Footnotes and
endnotes follow the paragraph that refers to them; comments, headers and footers come last, in sections
of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from semantik.parsing import xml
from semantik.parsing.archive import Archive
from semantik.parsing.blocks import Blocks, append_section
from semantik.parsing.flow import Flow
from semantik.parsing.ooxml import NAMES, Relation, attribute, main_part, on, relations
from semantik.parsing.text import Text

# Their content is not shown, is shown elsewhere, or is a second form of the same.
_SKIPPED = frozenset(
    {"w:del", "w:moveFrom", "w:instrText", "w:delText", "w:tabs", "w:rt", "mc:Fallback", "w:pPrChange"}
    | {"w:rPrChange", "w:sectPr"}
)
_WRITTEN = {"w:tab": "\t", "w:ptab": "\t", "w:br": "\n", "w:cr": "\n", "w:noBreakHyphen": "-"}
_NOTE_REFERENCES = {"w:footnoteReference": "footnotes", "w:endnoteReference": "endnotes"}
_HEADING_STYLE = re.compile(r"heading [1-9]|title", re.IGNORECASE)
_BODY_LEVEL = 9  # outline levels 0 to 8 are headings


def parse(data: bytes) -> Text:
    """Return the text of a Word document, .docx, .docm, .dotx or .dotm; DocumentError when it is broken."""
    archive = Archive(data)
    main = main_part(archive, "word/document.xml")
    parts = list(relations(archive, main).values())
    headings = _headings(archive, parts)
    notes = {
        (kind, number): words
        for kind in ("footnotes", "endnotes")
        for number, words in _numbered(archive, parts, kind, kind[:-1]).items()
    }
    flow = Flow()
    xml.read(archive.blocks(main), _Body(Blocks(flow), headings, notes), main)
    comments = _numbered(archive, parts, "comments", "comment").values()
    append_section(flow, "comments", "\n\n".join(filter(None, comments)))
    # Documents have up to three of each for every part of theirs, mostly the same.
    margins = dict.fromkeys(_margins(archive, parts))
    append_section(flow, "headers and footers", "\n\n".join(filter(None, margins)))
    text = flow.text()
    return Text(text, flow.sections, None if text else "no visible text")


class _Body(xml.Events):
    """Sends a part's paragraphs to blocks. `headings` are ids of styles, `notes` texts by (kind, id)."""

    def __init__(
        self,
        blocks: Blocks,
        headings: frozenset[str] = frozenset(),
        notes: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self.blocks = blocks
        self._headings = headings
        self._notes = notes or {}
        self._skipping = 0  # elements deep inside of what is skipped
        self._paragraphs: list[bool] = []  # whether each open paragraph is a heading
        self._runs: list[bool] = []  # whether each open run is hidden
        self._codes: list[bool] = []  # whether each open field is still in its code
        self._keep = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """Begin an element."""
        name = NAMES[tag]
        if self._skipping or name in _SKIPPED:
            self._skipping += 1
        elif name in ("w:t", "m:t"):
            self._keep = self._shown()
        elif name == "w:r":
            self._runs.append(False)
        elif name == "w:p":
            self._paragraphs.append(False)
            self.blocks.open_paragraph()
        elif name in _WRITTEN:
            if self._shown():
                self.blocks.write(_WRITTEN[name])
        elif name == "w:pStyle":
            self._heading(attribute(attributes, "w:val") in self._headings)
        elif name == "w:outlineLvl":
            self._heading(_level(attributes) < _BODY_LEVEL)
        elif name == "w:vanish":
            # In a paragraph's own properties it speaks of the paragraph's mark.
            if self._runs and on(attributes):
                self._runs[-1] = True
        elif name == "w:fldChar":
            self._field(attribute(attributes, "w:fldCharType"))
        elif name in _NOTE_REFERENCES:
            number = attribute(attributes, "w:id") or ""
            if words := self._notes.get((_NOTE_REFERENCES[name], number)):
                self.blocks.follow(words)
        elif name == "w:tbl":
            self.blocks.open_table()
        elif name == "w:tr":
            self.blocks.open_row()
        elif name == "w:tc":
            self.blocks.open_cell()

    def end(self, tag: str) -> None:
        """End an element."""
        if self._skipping:
            self._skipping -= 1
            return
        name = NAMES[tag]
        if name in ("w:t", "m:t"):
            self._keep = False
        elif name == "w:r":
            self._runs.pop()
        elif name == "w:p":
            self.blocks.close_paragraph(heading=self._paragraphs.pop())
        elif name == "w:tr":
            self.blocks.close_row()
        elif name == "w:tbl":
            self.blocks.close_table()

    def data(self, words: str) -> None:
        """Take text."""
        if self._keep:
            self.blocks.write(words)

    def _shown(self) -> bool:
        return not (self._runs and self._runs[-1]) and True not in self._codes

    def _heading(self, yes: bool) -> None:
        if self._paragraphs and yes:
            self._paragraphs[-1] = True

    def _field(self, what: str | None) -> None:
        if what == "begin":
            self._codes.append(True)
        elif what == "separate" and self._codes:
            self._codes[-1] = False
        elif what == "end" and self._codes:
            self._codes.pop()


class _Numbered(_Body):
    """Collects the texts of notes or comments by their ids."""

    def __init__(self, element: str) -> None:
        super().__init__(Blocks(Flow()))
        self.found: dict[str, str] = {}
        self._element = f"w:{element}"
        self._number = ""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if NAMES[tag] == self._element:
            self._number = attribute(attributes, "w:id") or ""
            self.blocks = Blocks(Flow())
        super().start(tag, attributes)

    def end(self, tag: str) -> None:
        super().end(tag)
        if NAMES[tag] == self._element:
            self.found[self._number] = self.blocks.flow.text().replace("\n\n", "\n")


class _Styles(xml.Events):
    """Collects which paragraph styles are headings: by name, by outline level, or by the style below them."""

    def __init__(self) -> None:
        self.headings: set[str] = set()
        self._based: dict[str, str] = {}
        self._style = ""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = NAMES[tag]
        if name == "w:style":
            self._style = attribute(attributes, "w:styleId") or ""
        elif not self._style:
            return
        elif name == "w:name":
            if _HEADING_STYLE.fullmatch(attribute(attributes, "w:val") or ""):
                self.headings.add(self._style)
        elif name == "w:outlineLvl" and _level(attributes) < _BODY_LEVEL:
            self.headings.add(self._style)
        elif name == "w:basedOn":
            self._based[self._style] = attribute(attributes, "w:val") or ""

    def end(self, tag: str) -> None:
        if NAMES[tag] == "w:style":
            self._style = ""

    def close(self) -> None:
        for style in self._based:
            seen: set[str] = set()
            below: str | None = style
            while below and below not in seen:
                if below in self.headings:
                    self.headings.add(style)
                    break
                seen.add(below)
                below = self._based.get(below)


def _level(attributes: Mapping[str, str]) -> int:
    value = attribute(attributes, "w:val") or ""
    return int(value) if value in "012345678" and value else _BODY_LEVEL


def _headings(archive: Archive, parts: list[Relation]) -> frozenset[str]:
    styles = _Styles()
    for part in parts:
        if part.kind == "styles":
            xml.read(archive.blocks(part.part), styles, part.part)
    return frozenset(styles.headings)


def _numbered(archive: Archive, parts: list[Relation], kind: str, element: str) -> dict[str, str]:
    events = _Numbered(element)
    for part in parts:
        if part.kind == kind:
            xml.read(archive.blocks(part.part), events, part.part)
    return events.found


def _margins(archive: Archive, parts: list[Relation]) -> list[str]:
    found = []
    for part in parts:
        if part.kind in ("header", "footer"):
            flow = Flow()
            xml.read(archive.blocks(part.part), _Body(Blocks(flow)), part.part)
            found.append(flow.text())
    return found
