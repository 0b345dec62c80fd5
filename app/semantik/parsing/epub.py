"""EPUB: the chapters in the order of the spine, each read as the HTML it is.

A chapter's section has the title that the table of contents gives it, or else its own first heading; further
headings are sections too.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Mapping
from urllib.parse import unquote

from selectolax.lexbor import LexborHTMLParser

from semantik.exceptions import DocumentError
from semantik.parsing import html, xml
from semantik.parsing.archive import Archive
from semantik.parsing.text import Text

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_PAGES = ("application/xhtml+xml", "text/html")
_NCX = "application/x-dtbncx+xml"
_LABEL_CHARACTERS = 200

# XHTML may close an element in its first tag, which HTML does not know: <title/> would swallow the page.
_SELF_CLOSED = re.compile(rb"<([A-Za-z][A-Za-z0-9:]*)((?:\s[^<>]*)?)/>")
_VOID = frozenset(
    {
        b"br",
        b"hr",
        b"img",
        b"input",
        b"meta",
        b"link",
        b"col",
        b"area",
        b"base",
        b"embed",
        b"param",
        b"source",
    }
    | {b"track", b"wbr"}
)


def parse(data: bytes) -> Text:
    """Return the text of a book; DocumentError when it is broken, or encrypted (DRM)."""
    archive = Archive(data)
    package = _package(archive)
    titles = _titles(archive, package)
    locked = _locked(archive)
    parts: list[str] = []
    sections: list[tuple[int, str]] = []
    length = 0
    unread = {"encrypted": 0, "missing": 0}
    pages = [item for item in package.spine() if item.kind in _PAGES]
    for page in pages:
        if page.path in locked or page.path not in archive.names:
            unread["encrypted" if page.path in locked else "missing"] += 1
            continue
        chapter = html.parse(_SELF_CLOSED.sub(_reopen, archive.read(page.path)), title=False)
        if not chapter.text:
            continue
        if parts:
            parts.append("\n\n")
            length += 2
        sections += [(length + offset, label) for offset, label in _sections(chapter, titles.get(page.path))]
        parts.append(chapter.text)
        length += len(chapter.text)
    if pages and sum(unread.values()) == len(pages):
        raise DocumentError(
            "encrypted EPUB: its chapters are locked (DRM)"
            if unread["encrypted"]
            else "broken EPUB: its chapters are missing"
        )
    notes = [] if parts else ["no visible text"]
    notes += [f"{count} of {len(pages)} chapters {how}" for how, count in unread.items() if count]
    return Text("".join(parts), sections, "; ".join(notes) or None)


def _reopen(match: re.Match[bytes]) -> bytes:
    if match[1].lower() in _VOID:
        return match[0]
    return b"<%b%b></%b>" % (match[1], match[2], match[1])


def _sections(chapter: Text, title: str | None) -> list[tuple[int, str]]:
    if not title:
        return chapter.sections
    # The title stands for the heading that opens the chapter.
    return [(0, title), *(section for section in chapter.sections if section[0] > 0)]


class _Item:
    """An entry of the manifest."""

    def __init__(self, folder: str, attributes: Mapping[str, str]) -> None:
        self.path = _path(folder, attributes.get("href", ""))
        self.kind = attributes.get("media-type", "")
        self.navigates = "nav" in attributes.get("properties", "").split()


class _Package(xml.Events):
    """Collects manifest and spine."""

    doctype_allowed = True

    def __init__(self, folder: str) -> None:
        self.items: dict[str, _Item] = {}
        self._folder = folder
        self._spine: list[str] = []

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = xml.local(tag)
        if name == "item":
            self.items[attributes.get("id", "")] = _Item(self._folder, attributes)
        elif name == "itemref":
            self._spine.append(attributes.get("idref", ""))

    def spine(self) -> list[_Item]:
        """Return the entries in reading order, each once."""
        return [self.items[key] for key in dict.fromkeys(self._spine) if key in self.items]


class _Attributes(xml.Events):
    """Collects the values of one attribute of one element."""

    doctype_allowed = True

    def __init__(self, element: str, attribute: str) -> None:
        self.values: list[str] = []
        self._element = element
        self._attribute = attribute

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if xml.local(tag) == self._element:
            self.values.append(attributes.get(self._attribute, ""))


class _Contents(xml.Events):
    """Collects the titles of an NCX, the table of contents of EPUB 2, by path."""

    doctype_allowed = True

    def __init__(self, folder: str) -> None:
        self.titles: dict[str, str] = {}
        self._folder = folder
        self._inside = False
        self._words: list[str] = []

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = xml.local(tag)
        if name == "navLabel":
            self._words = []
        elif name == "content":
            _entitle(self.titles, _path(self._folder, attributes.get("src", "")), "".join(self._words))
        self._inside = name == "text"

    def end(self, tag: str) -> None:  # noqa: ARG002 - a text holds no elements
        self._inside = False

    def data(self, words: str) -> None:
        if self._inside:
            self._words.append(words)


def _package(archive: Archive) -> _Package:
    if _CONTAINER not in archive.names:
        raise DocumentError(f"broken EPUB: {_CONTAINER} is missing")
    container = _Attributes("rootfile", "full-path")
    xml.read(archive.blocks(_CONTAINER), container, _CONTAINER)
    path = next((path for path in container.values if path in archive.names), None)
    if path is None:
        raise DocumentError(f"broken EPUB: the package document that {_CONTAINER} names is missing")
    package = _Package(posixpath.dirname(path))
    xml.read(archive.blocks(path), package, path)
    if not package.spine():
        raise DocumentError(f"broken EPUB: {path} has no spine")
    return package


def _titles(archive: Archive, package: _Package) -> dict[str, str]:
    """Return the titles of chapters by path; for a chapter of several entries, the first."""
    titles: dict[str, str] = {}
    for item in package.items.values():
        if item.path not in archive.names:
            continue
        folder = posixpath.dirname(item.path)
        if item.navigates:
            for link in LexborHTMLParser(archive.read(item.path)).css("nav a[href]"):
                _entitle(titles, _path(folder, link.attributes.get("href") or ""), link.text())
        elif item.kind == _NCX and not titles:
            contents = _Contents(folder)
            # Many are broken, and a book can do without; what was read until then holds.
            with contextlib.suppress(DocumentError):
                xml.read(archive.blocks(item.path), contents, item.path)
            titles |= contents.titles
    return titles


def _entitle(titles: dict[str, str], path: str, title: str) -> None:
    if words := " ".join(title.split())[:_LABEL_CHARACTERS]:
        titles.setdefault(path, words)


def _locked(archive: Archive) -> frozenset[str]:
    """Return the paths of what is encrypted: chapters by DRM, but also fonts, which do not matter."""
    if _ENCRYPTION not in archive.names:
        return frozenset()
    references = _Attributes("CipherReference", "URI")
    xml.read(archive.blocks(_ENCRYPTION), references, _ENCRYPTION)
    return frozenset(unquote(uri) for uri in references.values)


def _path(folder: str, href: str) -> str:
    """Return the member that a link means."""
    return posixpath.normpath(posixpath.join(folder, unquote(href.partition("#")[0])))
