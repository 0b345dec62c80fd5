"""XML of strangers, read as a stream of events: no tree, no document types, no entities, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lxml import etree

from semantik.exceptions import DocumentError


class Events:
    """Receives what a part holds. Tags are "{namespace}name"; nesting has no limit: nothing recurses."""

    #: Whether the part may have a document type, which office formats forbid.
    doctype_allowed = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """Begin an element."""

    def end(self, tag: str) -> None:
        """End an element."""

    def data(self, words: str) -> None:
        """Take text; one text may come in pieces."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:  # noqa: ARG002
        """Refuse a document type: with it come entities."""
        if not self.doctype_allowed:
            raise DocumentError("its XML has a document type (DTD), which the format forbids")

    def close(self) -> None:
        """End the part."""


def read(blocks: Iterable[bytes], events: Events, part: str) -> None:
    """Send the events of the XML in `blocks` to `events`; DocumentError naming `part` when it is broken."""
    parser = etree.XMLParser(
        target=events, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        for block in blocks:
            parser.feed(block)
        parser.close()
    except etree.XMLSyntaxError as error:
        raise DocumentError(f"broken XML in {part}: {error.msg}") from error


class Names(dict[str, str]):
    """Short names of tags and attributes, such as "w:p"; "" for those of other namespaces.

    `prefixes` maps a namespace to its prefix, colon included; several may share one.
    """

    _KEPT = 10_000  # names that a stranger thinks of must not fill the memory

    def __init__(self, prefixes: Mapping[str, str]) -> None:
        super().__init__()
        self._prefixes = prefixes

    def __missing__(self, tag: str) -> str:
        namespace, _, name = tag.removeprefix("{").rpartition("}")
        prefix = self._prefixes.get(namespace)
        short = prefix + name if prefix is not None else ""
        if len(self) < self._KEPT:
            self[tag] = short
        return short

    def attribute(self, attributes: Mapping[str, str], name: str) -> str | None:
        """Return the value of the attribute with this short name."""
        return next((value for key, value in attributes.items() if self[key] == name), None)


def local(tag: str) -> str:
    """Return a tag's name without its namespace."""
    return tag.rpartition("}")[2]
