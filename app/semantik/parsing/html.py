"""HTML: what a reader sees, block by block; headings become sections."""

from __future__ import annotations

import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from semantik.parsing.text import Text, decode

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\n\f\r]+")

_INVISIBLE = frozenset(
    {"head", "script", "style", "template", "noscript", "iframe", "object", "embed", "svg", "canvas"}
    | {"audio", "video", "select", "datalist", "annotation", "annotation-xml"}
)
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_PARAGRAPHS = frozenset(
    {"p", "div", "section", "article", "header", "footer", "main", "nav", "aside", "blockquote", "pre", "ul"}
    | {"ol", "dl", "table", "figure", "form", "fieldset", "details", "address", "hr", "body"}
    | _HEADINGS
)
_LINES = frozenset({"li", "dt", "dd", "tr", "caption", "figcaption", "summary", "legend", "br"})
_CELLS = frozenset({"td", "th"})
_LABEL_CHARACTERS = 200


def parse(data: bytes, *, title: bool = True) -> Text:
    """Return the visible text: the title first if wanted, a blank line between blocks, tabs between cells."""
    tree = LexborHTMLParser(decode(data, _declared(data)))
    page = _Page()
    named = tree.css_first("title") if title else None
    if named is not None and (words := " ".join(named.text().split())):
        page.section(words)
        page.write(words)
        page.end_block(2)
    if tree.body is not None:
        _walk(tree.body, page)
    text = page.text()
    return Text(text, page.sections, None if text else "no visible text")


def _declared(data: bytes) -> str | None:
    found = _CHARSET.search(data, 0, 4096) or _XML_ENCODING.match(data)
    if found is None:
        return None
    name = found[1].decode("ascii").lower()
    # As browsers do (WHATWG Encoding): these names mean windows-1252, and UTF-16 in a readable tag is not
    # true.
    if name in ("iso-8859-1", "latin1", "us-ascii", "ascii"):
        return "cp1252"
    return None if name.startswith(("utf-16", "utf-32")) else name


class _Page:
    """Collects text; knows at each moment the offset that the next visible character will have."""

    def __init__(self) -> None:
        self.sections: list[tuple[int, str]] = []
        self._parts: list[str] = []
        self._length = 0
        self._breaks = 0  # line ends owed before the next character
        self._space = False  # a space owed

    def write(self, words: str, *, keep: bool = False) -> None:
        """Append text; `keep` leaves spaces and line ends as they are (pre)."""
        if not keep:
            words = _SPACE.sub(" ", words)
            if words.startswith(" "):
                self._space = True
                words = words[1:]
            if not words:
                return
            trailing = words.endswith(" ")
            words = words.rstrip(" ")
        else:
            trailing = False
        if self._parts:
            if self._breaks:
                self._append("\n" * self._breaks)
            elif self._space:
                self._append(" ")
        self._breaks = 0
        self._space = trailing
        self._append(words)

    def end_block(self, lines: int) -> None:
        """Owe `lines` line ends before whatever comes next."""
        self._breaks = max(self._breaks, lines)
        self._space = False

    def cell(self) -> None:
        """Owe a tab between the cells of a row."""
        if self._parts and not self._breaks:
            self._append("\t")
            self._space = False

    def section(self, label: str) -> None:
        """Start a section at the next visible character."""
        owed = (self._breaks or int(self._space)) if self._parts else 0
        self.sections.append((self._length + owed, label[:_LABEL_CHARACTERS]))

    def text(self) -> str:
        return "".join(self._parts)

    def _append(self, part: str) -> None:
        self._parts.append(part)
        self._length += len(part)


def _walk(body: LexborNode, page: _Page) -> None:
    """Visit the tree in document order, by a stack of its own: a page may be nested ten thousand deep."""
    stack: list[tuple[str, Iterator[LexborNode]]] = [("body", body.iter(include_text=True))]
    preformatted = 0
    while stack:
        tag, children = stack[-1]
        node = next(children, None)
        if node is None:
            stack.pop()
            preformatted -= tag == "pre"
            _break(tag, page)
            continue
        name = node.tag or ""
        if name == "-text":
            page.write(node.text_content or "", keep=preformatted > 0)
        elif name[:1] in ("-", "!") or name in _INVISIBLE or _hidden(node):
            continue
        else:
            _break(name, page)
            if name in _CELLS:
                page.cell()
            if name in _HEADINGS and (label := _label(node)):
                page.section(label)
            preformatted += name == "pre"
            stack.append((name, node.iter(include_text=True)))


def _break(tag: str, page: _Page) -> None:
    if tag in _PARAGRAPHS:
        page.end_block(2)
    elif tag in _LINES:
        page.end_block(1)


def _hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    if not attributes:
        return False
    # Sphinx's paragraph signs show on hover only.
    if "headerlink" in (attributes.get("class") or "").split():
        return True
    return "hidden" in attributes or bool(_HIDDEN_STYLE.search(attributes.get("style") or ""))


def _label(heading: LexborNode) -> str:
    return " ".join(heading.text().replace("\xb6", " ").split())
