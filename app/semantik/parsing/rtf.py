"""RTF: the text in reading order; headings, footnotes and comments become sections.

A reader of its own, after Microsoft's Rich Text Format Specification 1.9.1. Its one pass over the bytes is
linear and keeps open groups in a list, so that neither length nor depth can make it hang or overflow;
double-byte characters and pairs of surrogates are put together before they are decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from semantik.parsing.flow import Flow
from semantik.parsing.text import Text, codec

# A control word, a byte in hex, another control symbol, a brace, or text; line ends mean nothing.
_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,9})?\d* ?|\\'([0-9a-fA-F]{2})|\\(.)|([{}])|([^\\{}\r\n]+)|[\r\n]+|\\",
    re.DOTALL,
)

# Groups that hold no text of the document; those that start with \* are left out anyway, but for _KEPT. Page
# headers repeat on every page; what "shprslt" and "nonesttables" hold is said elsewhere for newer readers.
_SKIPPED = frozenset(
    b"fonttbl colortbl stylesheet info pict header headerl headerr headerf footer footerl footerr "
    b"footerf fldinst objdata objclass objname sn sv shprslt nonesttables listtable listoverridetable "
    b"list listlevel leveltext levelnumbers rsidtbl filetbl revtbl xe tc rxe txe themedata "
    b"colorschememapping datastore latentstyles generator mmathPr ftnsep ftnsepc ftncn aftnsep "
    b"aftnsepc aftncn bkmkstart bkmkend formfield atnid atnauthor fchars lchars template private "
    b"pgptbl xmlnstbl userprops docvar annotationref".split()
)
_KEPT = frozenset(b"shpinst shptxt nesttableprops annotation footnote ud fldrslt".split())
_ASIDE = {b"footnote": "footnotes", b"annotation": "comments"}

_CHARACTERS = {
    b"emdash": "\u2014",
    b"endash": "\u2013",
    b"emspace": "\u2003",
    b"enspace": "\u2002",
    b"qmspace": "\u2005",
    b"bullet": "\u2022",
    b"lquote": "\u2018",
    b"rquote": "\u2019",
    b"ldblquote": "\u201c",
    b"rdblquote": "\u201d",
    b"tab": "\t",
    b"zwj": "\u200d",
    b"zwnj": "\u200c",
    b"~": "\xa0",
    b"_": "\u2011",
    b"{": "{",
    b"}": "}",
    b"\\": "\\",
    b"-": "",
    b":": "",
    b"|": "",
}

_LINES = frozenset((b"line", b"lbr", b"softline", b"column"))
_PARAGRAPHS = frozenset((b"par", b"sect", b"page", b"\n", b"\r"))
_CELLS = frozenset((b"cell", b"nestcell"))
_ROWS = frozenset((b"row", b"nestrow"))

# \fcharset, where it is not what the document's code page is (RTF specification, "Font Table").
_CHARSETS = {
    77: "mac_roman",
    128: "cp932",
    129: "cp949",
    130: "johab",
    134: "gb18030",
    136: "big5hkscs",
    161: "cp1253",
    162: "cp1254",
    163: "cp1258",
    177: "cp1255",
    178: "cp1256",
    186: "cp1257",
    204: "cp1251",
    222: "cp874",
    238: "cp1250",
    255: "cp437",
}
_CODE_PAGES = {10000: "mac_roman", 10007: "mac_cyrillic", 65001: "utf-8", 708: "iso8859-6"}
_DOCUMENT_WORDS = {b"ansi": "cp1252", b"mac": "mac_roman", b"pc": "cp437", b"pca": "cp850"}

# Why a group is not shown; a destination inside of \upr that newer readers know ends the second.
_SHOWN, _UNTIL_UNICODE, _HIDDEN = range(3)


@dataclass(frozen=True)
class _State:
    """What the end of a group restores."""

    skipped: int = _SHOWN
    hidden: bool = False  # by formatting: \v, \deleted
    fallback: int = 1  # characters behind \uN for readers that do not know it
    font: int | None = None
    in_table: bool = False
    heading: bool = False
    aside: bytes = b""  # footnote or annotation


def parse(data: bytes) -> Text:
    """Return the body, then footnotes and comments, each a section; no page headers, no hidden text.

    Paragraphs have a blank line between them, cells a tab, rows a line end. What is damaged is read as far as
    it goes, and the note says so.
    """
    return _Reader(data).read()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._state = _State()
        self._groups: list[_State] = []
        self._codec = "cp1252"  # of the document
        self._fonts: dict[int, str] = {}
        self._font_table = 0  # depth of groups at which the font table began
        self._default_font: int | None = None
        self._pending = bytearray()  # bytes of text, not yet decoded
        self._half = ""  # the first surrogate of a pair
        self._fallback = 0  # characters still to be left out
        self._star = False
        self._body = Flow()
        self._aside = {name: Flow() for name in _ASIDE}
        self._flow = self._body

    def read(self) -> Text:
        position = 0
        data = self._data
        while match := _TOKEN.match(data, position):
            position = match.end()
            word, number, hexed, symbol, brace, text = match.groups()
            if word:
                value = int(number) if number else None
                if word == b"bin":
                    position += max(0, value or 0)
                else:
                    self._word(word, value)
                self._star = self._star and not word
            elif text or hexed:
                self._text(text or bytes.fromhex(hexed.decode()))
            elif brace == b"{":
                self._groups.append(self._state)
                self._fallback = 0
                self._star = False
            elif brace:
                if not self._close():
                    break
            elif symbol == b"*":
                self._star = True
            elif symbol:
                self._symbol(symbol)
        self._flush()
        behind = len(data[position:].strip(b"\0\r\n\t \x1a}"))
        return self._result(open_groups=len(self._groups), behind=behind)

    def _result(self, open_groups: int, behind: int) -> Text:
        for name, label in _ASIDE.items():
            if aside := self._aside[name].text().strip():
                self._body.section(label)
                self._body.write(aside)
        text = self._body.text()
        note = f"ends early: {open_groups} groups are left open" if open_groups else None
        if behind:
            note = f"{behind} bytes behind the end of the document not read"
        return Text(text, self._body.sections, note if text else note or "no text")

    def _close(self) -> bool:
        """End a group; False when it was the document."""
        if not self._groups:
            return False
        state = self._groups.pop()
        if len(self._groups) < self._font_table:
            self._font_table = 0
        self._fallback = 0
        self._change(state)
        return bool(self._groups)

    def _change(self, state: _State) -> None:
        before = self._state
        if state is before:
            return
        if state.font != before.font or state.aside != before.aside:
            self._flush()
        if state.aside != before.aside:
            if before.aside:
                self._aside[before.aside].end_paragraph()
            self._flow = self._aside.get(state.aside, self._body)
        self._state = state

    @property
    def _visible(self) -> bool:
        return self._state.skipped == _SHOWN and not self._state.hidden

    def _text(self, text: bytes) -> None:
        if self._fallback:
            left_out = min(self._fallback, len(text))
            self._fallback -= left_out
            text = text[left_out:]
        if self._visible:
            self._pending += text

    def _symbol(self, symbol: bytes) -> None:
        if self._fallback:
            self._fallback -= 1
        elif symbol in b"\r\n":
            self._layout(b"par")
        elif symbol == b"\\":
            # Not written apart: as the second byte of a double-byte character it stands escaped.
            self._text(symbol)
        elif (character := _CHARACTERS.get(symbol)) is not None:
            self._character(character)

    def _word(self, word: bytes, value: int | None) -> None:
        if self._fallback and word != b"u":
            self._fallback -= 1
            return
        state = self._state
        if self._font_table:
            self._font(word, value)
        elif word == b"u":
            self._unicode(value or 0)
        elif word in _CHARACTERS:
            self._character(_CHARACTERS[word])
        elif word in _LINES or word in _PARAGRAPHS or word in _CELLS or word in _ROWS:
            self._layout(word)
        elif word == b"fonttbl":
            self._font_table = len(self._groups)
            self._change(replace(state, skipped=_HIDDEN))
        elif word == b"upr":
            self._change(replace(state, skipped=max(state.skipped, _UNTIL_UNICODE)))
        elif word == b"ud" and state.skipped == _UNTIL_UNICODE:
            self._change(replace(state, skipped=_SHOWN))
        elif word in _SKIPPED or (self._star and word not in _KEPT):
            self._change(replace(state, skipped=_HIDDEN))
        elif word in _ASIDE:
            self._change(replace(state, aside=word, heading=False, in_table=False))
        else:
            self._property(word, value)

    def _property(self, word: bytes, value: int | None) -> None:
        state = self._state
        on = value != 0
        if word == b"uc":
            state = replace(state, fallback=max(0, min(value or 0, 8)))
        elif word == b"f":
            state = replace(state, font=value)
        elif word == b"plain":
            state = replace(state, font=self._default_font, hidden=False)
        elif word == b"pard":
            state = replace(state, heading=False, in_table=False)
        elif word in (b"v", b"deleted"):
            state = replace(state, hidden=on)
        elif word == b"intbl":
            state = replace(state, in_table=on)
        elif word == b"outlinelevel":
            state = replace(state, heading=value is not None and value < 9)
        elif word == b"deff":
            self._default_font = value
        elif word == b"ansicpg" and value is not None:
            self._codec = _CODE_PAGES.get(value) or codec(f"cp{value}") or self._codec
        elif word in _DOCUMENT_WORDS:
            self._codec = _DOCUMENT_WORDS[word]
        self._change(state)

    def _font(self, word: bytes, value: int | None) -> None:
        if word == b"f":
            self._state = replace(self._state, font=value)
        elif word == b"fcharset" and self._state.font is not None and value in _CHARSETS:
            self._fonts[self._state.font] = _CHARSETS[value]

    def _unicode(self, value: int) -> None:
        self._fallback = self._state.fallback
        if not self._visible:
            return
        code = value + 0x10000 if value < 0 else value
        self._character(chr(code) if 0 <= code <= 0x10FFFF else "\ufffd")

    def _character(self, character: str) -> None:
        if not self._visible or not character:
            return
        self._flush(keep_half=True)
        half, self._half = self._half, ""
        if "\ud800" <= character <= "\udbff":
            self._half = character
        elif half and "\udc00" <= character <= "\udfff":
            both = (half + character).encode("utf-16-le", "surrogatepass")
            self._flow.write(both.decode("utf-16-le"))
        else:
            self._flow.write(half + character)

    def _layout(self, word: bytes) -> None:
        if self._state.skipped != _SHOWN:
            return
        self._flush()
        if word in _CELLS:
            self._flow.end_cell()
        elif word in _ROWS:
            self._flow.end_paragraph(lines=1)
        elif word in _LINES or self._state.in_table:
            self._flow.end_line()
        else:
            self._flow.end_paragraph(heading=self._state.heading)

    def _flush(self, *, keep_half: bool = False) -> None:
        """Write the bytes of text that have come together."""
        if self._half and (self._pending or not keep_half):
            self._flow.write(self._half)
            self._half = ""
        if self._pending:
            font = self._state.font
            encoding = self._codec if font is None else self._fonts.get(font, self._codec)
            self._flow.write(self._pending.decode(encoding, "replace"))
            self._pending.clear()
