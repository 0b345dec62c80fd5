"""PPTX: slide by slide in the order of the show, each slide a section, its notes another behind it.

A hidden slide is read as well, since whoever opens the file sees it; its label says that it is hidden. Dates,
footers and numbers that the layout repeats on each slide are not text.
"""

from __future__ import annotations

from collections.abc import Mapping

from semantik.exceptions import DocumentError
from semantik.parsing import xml
from semantik.parsing.archive import Archive
from semantik.parsing.blocks import Blocks, append_section
from semantik.parsing.flow import Flow
from semantik.parsing.ooxml import NAMES, attribute, main_part, relations
from semantik.parsing.text import Text

_TITLES = ("title", "ctrTitle")
_REPEATED = ("dt", "ftr", "hdr", "sldNum", "sldImg")


def parse(data: bytes) -> Text:
    """Return the text of a presentation, .pptx, .pptm, .potx or .ppsx; DocumentError when it is broken."""
    archive = Archive(data)
    main = main_part(archive, "ppt/presentation.xml")
    order = _Order()
    xml.read(archive.blocks(main), order, main)
    parts = relations(archive, main)
    flow = Flow()
    missing = 0
    for number, key in enumerate(order.slides, start=1):
        if key in parts:
            _slide(archive, parts[key].part, number, flow)
        else:
            missing += 1
    if missing and missing == len(order.slides):
        raise DocumentError("broken presentation: all its slides are missing")
    text = flow.text()
    notes = [] if text else ["no visible text"]
    if missing:
        notes.append(f"{missing} of {len(order.slides)} slides are missing in the file")
    return Text(text, flow.sections, "; ".join(notes) or None)


def _slide(archive: Archive, part: str, number: int, flow: Flow) -> None:
    slide = _Shapes()
    xml.read(archive.blocks(part), slide, part)
    drawn = [slide.flow.text()]
    spoken = ""
    for relation in relations(archive, part).values():
        if relation.kind == "diagramData":
            diagram = _Shapes(all_shapes=True)
            xml.read(archive.blocks(relation.part), diagram, relation.part)
            drawn.append(diagram.flow.text())
        elif relation.kind == "notesSlide":
            notes = _Shapes()
            xml.read(archive.blocks(relation.part), notes, relation.part)
            spoken = notes.flow.text()
    title = " ".join(slide.title.split())
    label = f"slide {number}{'' if slide.shown else ' (hidden)'}"
    append_section(flow, f"{label}: {title}" if title else label, "\n\n".join(filter(None, [title, *drawn])))
    append_section(flow, f"{label}: notes", spoken)


class _Order(xml.Events):
    """Collects the ids of the slides in the order of the show."""

    def __init__(self) -> None:
        self.slides: list[str] = []

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if NAMES[tag] == "p:sldId":
            self.slides.append(attribute(attributes, "r:id") or "")


class _Shapes(xml.Events):
    """Writes the shapes of a slide to `flow`, in the order in which they are drawn; the title is apart."""

    def __init__(self, *, all_shapes: bool = False) -> None:
        self.flow = Flow()
        self.title = ""
        self.shown = True
        self._title = Flow()
        self._body = self._blocks = Blocks(self.flow)
        self._shapes: list[bool] = [True] if all_shapes else []  # whether the text of each is kept
        self._skipping = 0
        self._keep = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = NAMES[tag]
        if self._skipping or name == "mc:Fallback":
            self._skipping += 1
        elif name == "p:sld":
            self.shown = attributes.get("show") not in ("0", "false")
        elif name in ("p:sp", "p:graphicFrame"):
            self._shapes.append(True)
        elif name == "p:ph" and self._shapes:
            kind = attributes.get("type", "")
            self._shapes[-1] = kind not in _REPEATED
            if kind in _TITLES:
                self._blocks = Blocks(self._title)
        elif name == "a:p":
            self._blocks.open_paragraph()
        elif name == "a:t":
            self._keep = bool(self._shapes) and self._shapes[-1]
        elif name == "a:br":
            self._blocks.write("\n")
        elif name == "a:tbl":
            self._blocks.open_table()
        elif name == "a:tr":
            self._blocks.open_row()
        elif name == "a:tc":
            self._blocks.open_cell()

    def end(self, tag: str) -> None:
        if self._skipping:
            self._skipping -= 1
            return
        name = NAMES[tag]
        if name == "a:t":
            self._keep = False
        elif name == "a:p":
            self._blocks.close_paragraph()
        elif name in ("p:sp", "p:graphicFrame"):
            self._shapes.pop()
            self._blocks = self._body
        elif name == "a:tr":
            self._blocks.close_row()
        elif name == "a:tbl":
            self._blocks.close_table()

    def data(self, words: str) -> None:
        if self._keep:
            self._blocks.write(words)

    def close(self) -> None:
        self.title = self._title.text()
