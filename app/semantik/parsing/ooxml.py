"""What DOCX and PPTX have in common: parts, and the relationships that lead from one to another."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from semantik.exceptions import DocumentError
from semantik.parsing import xml
from semantik.parsing.archive import Archive

_NAMESPACES = {
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main": "w:",
    "http://purl.oclc.org/ooxml/wordprocessingml/main": "w:",
    "http://schemas.openxmlformats.org/presentationml/2006/main": "p:",
    "http://purl.oclc.org/ooxml/presentationml/main": "p:",
    "http://schemas.openxmlformats.org/drawingml/2006/main": "a:",
    "http://purl.oclc.org/ooxml/drawingml/main": "a:",
    "http://schemas.openxmlformats.org/officeDocument/2006/math": "m:",
    "http://purl.oclc.org/ooxml/officeDocument/math": "m:",
    "http://schemas.openxmlformats.org/officeDocument/2006/relationships": "r:",
    "http://purl.oclc.org/ooxml/officeDocument/relationships": "r:",
    "http://schemas.openxmlformats.org/markup-compatibility/2006": "mc:",
}


NAMES = xml.Names(_NAMESPACES)
attribute = NAMES.attribute


def on(attributes: Mapping[str, str]) -> bool:
    """Say whether a switch such as <w:vanish/> is on."""
    return attribute(attributes, "w:val") not in ("0", "false", "off")


@dataclass(frozen=True)
class Relation:
    """Where a relationship leads."""

    kind: str  # the last word of its type, such as "footnotes"
    part: str


class _Relations(xml.Events):
    def __init__(self, base: str) -> None:
        self.found: dict[str, Relation] = {}
        self._base = base

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if xml.local(tag) != "Relationship" or attributes.get("TargetMode") == "External":
            return
        part = posixpath.normpath(posixpath.join("/", self._base, attributes.get("Target", ""))).lstrip("/")
        kind = attributes.get("Type", "").rpartition("/")[2]
        self.found[attributes.get("Id", "")] = Relation(kind, part)


def relations(archive: Archive, part: str) -> dict[str, Relation]:
    """Return the relationships of a part ("" for the package) whose targets exist, by their ids, in order."""
    folder, _, name = part.rpartition("/")
    source = posixpath.join(folder, "_rels", f"{name}.rels")
    if source not in archive.names:
        return {}
    events = _Relations(folder)
    xml.read(archive.blocks(source), events, source)
    return {key: relation for key, relation in events.found.items() if relation.part in archive.names}


def main_part(archive: Archive, usual: str) -> str:
    """Return the part that the package starts at; DocumentError when there is none."""
    for relation in relations(archive, "").values():
        if relation.kind == "officeDocument":
            return relation.part
    if usual in archive.names:
        return usual
    raise DocumentError(f"broken office document: {usual} is missing")
