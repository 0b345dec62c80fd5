"""Markdown: the text stays as it was written; headings become sections."""

from __future__ import annotations

import re

from semantik.parsing.text import Text, decode

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(?:=+|-+)[ \t]*$")
# A line that cannot be the text of an underlined heading: a list, a quote, a table, an indented or a fenced
# line.
_NO_SETEXT = re.compile(r"(?: {4}|\t| {0,3}(?:[-*+>|#]|\d+[.)]\s))")
_MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*_`]+")
_LABEL_CHARACTERS = 200
# Of a line; the patterns take time that grows with the square of what they see.
_LINE_CHARACTERS = 1000


def parse(data: bytes) -> Text:
    """Return the text of a Markdown document with a section at each heading outside of fenced code."""
    text = decode(data)
    return Text(text, list(_sections(text)))


def _sections(text: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    fence = ""
    before, before_offset = "", 0
    offset = 0
    for line in text.splitlines(keepends=True):
        bare = line[:_LINE_CHARACTERS].rstrip("\n")
        heading: tuple[int, str] | None = None
        if fence:
            if (close := _FENCE.match(bare)) and close[1].startswith(fence) and not bare.strip(" `~"):
                fence = ""
            bare = ""  # code is no heading's text
        elif opened := _FENCE.match(bare):
            fence = opened[1]
            bare = ""
        elif atx := _ATX.match(bare):
            heading = (offset, atx[1])
            bare = ""
        elif before.strip() and _SETEXT.match(bare) and not _NO_SETEXT.match(before):
            heading = (before_offset, before)
            bare = ""
        if heading and (label := _label(heading[1])):
            found.append((heading[0], label))
        before, before_offset = bare, offset
        offset += len(line)
    return found


def _label(heading: str) -> str:
    return " ".join(_MARKUP.sub(r"\1", heading).split())[:_LABEL_CHARACTERS]
