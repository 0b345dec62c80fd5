"""RTF: what a reader sees, in whatever encoding it was written, however broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from semantik.parser import ParserClient
from semantik.parsing import parse
from semantik.parsing.text import Text
from semantik.settings import Settings


def read(body: bytes, head: bytes = rb"\ansi\ansicpg1252\deff0") -> Text:
    kind, text = parse(b"{\\rtf1" + head + b"\n" + body + b"}", "a.rtf")
    assert kind == "rtf"
    return text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (rb"one {\b two}\i  three\i0 .\par next\line line\par", "one two three.\n\nnext\nline"),
        (b"one\r\ntwo \\\nthree", "onetwo \n\nthree"),
        (rb"\{ \\ \} \~a\_b\-c \emdash  \bullet\tab x", "{ \\ } \xa0a\u2011bc \u2014 \u2022\tx"),
        (rb"caf\'e9 \'80 \u8364?\u8364\'80 na\u239\'efve", "café € €€ naïve"),
        (rb"\uc2\u12354\'82\'a0x \uc0\u12354x {\uc0\u97}\u98?", "あx あx ab?"),
        (rb"\u-10179?\u-8704? and \u55357?\u56832?", "\U0001f600 and \U0001f600"),
        (rb"half \u-10179? of one", "half \ufffd of one"),
        (rb"a{\*\unknown b{\par c}}{\v hidden}{\deleted gone}{\pict 00ff}d", "ad"),
        (rb"{\header top}{\footerr end}body{\stylesheet{\s1 heading 1;}}{\info{\title T}}", "body"),
        (
            rb'see {\field{\*\fldinst{HYPERLINK "http://x"}}{\fldrslt the page}}.',
            "see the page.",
        ),
        (rb"{\upr{old}{\*\ud new}} {\shp{\*\shpinst{\sp{\sn a}{\sv 1}}{\shptxt boxed}}}", "new boxed"),
        (rb"{\object{\*\objdata 0105}{\result shown}}", "shown"),
        (b"a{\\object{\\objdata\\bin6 }}}{{x}}b", "ab"),
    ],
)
def test_text(body: bytes, text: str) -> None:
    assert read(body).text == text


def test_tables() -> None:
    body = (
        rb"before\par\trowd\intbl a\cell b\par c\cell\row\trowd\intbl \cell d\cell\row\pard after\par "
        rb"\intbl x{\itap2 in\nestcell {\nonesttables\par}{\*\nesttableprops\nestrow}}\cell\row"
    )
    assert read(body).text == "before\n\na\tb\nc\n\td\nafter\n\nx in\n".replace("x in\n", "xin")


@pytest.mark.parametrize(
    ("head", "body", "text"),
    [
        (rb"\ansi\ansicpg1251", "Привет".encode("cp1251"), "Привет"),
        (rb"\mac", rb"\'8egal", "égal"),
        (rb"\pc", rb"\'81ber", "über"),
        (rb"\ansi\ansicpg65001", "naïve".encode(), "naïve"),
        (rb"\ansi{\fonttbl{\f0 Arial;}{\f1\fcharset204 Arial Cyr;}}", rb"\f1\'cf\'f0\plain\'cf\'f0", "ПрÏð"),
        (rb"\ansi{\fonttbl{\f3\fcharset128 Gothic;}}", b"{\\f3\\'83\\\\\\'82\\'a0\\'82a}!", "ソあＢ!"),
        (rb"\ansi\deff2{\fonttbl{\f2\fcharset238 CE;}}", rb"\plain\'b3\'f3d\'9f", "łódź"),
        (rb"\ansi\ansicpg99999", rb"\'e9", "é"),
    ],
)
def test_encodings(head: bytes, body: bytes, text: str) -> None:
    assert read(body, head).text == text


def test_headings_footnotes_and_comments_are_sections() -> None:
    text = read(
        rb"\pard\outlinelevel0 Top\par\pard text{\super\chftn{\footnote \chftn  the note\par}} goes on"
        rb"{\*\annotation {\*\annotationref} a remark}\par\pard\outlinelevel1{\b Sub} part\par\pard end"
    )
    assert text.text == "Top\n\ntext goes on\n\nSub part\n\nend\n\nthe note\n\na remark"
    found = [(label, text.text[offset:].split()[0]) for offset, label in text.sections]
    assert found == [("Top", "Top"), ("Sub part", "Sub"), ("footnotes", "the"), ("comments", "a")]


@pytest.mark.parametrize(
    ("data", "text", "note"),
    [
        (rb"{\rtf1 cut {\b off", "cut off", "ends early: 2 groups are left open"),
        (rb"{\rtf1 done} and more", "done", "8 bytes behind the end of the document not read"),
        (
            rb"{\rtf1 a\'zzb\u99999999 ?\u-99999999 ?c\uc-5 d\bin-5 e\'e",
            "azzb\ufffd\ufffdcdee",
            "ends early: 1 groups are left open",
        ),
        (b"{\\rtf1 done}}\r\n\x00", "done", None),
        (b"{\\rtf1 a\x00b\\", "a b", "ends early: 1 groups are left open"),
        (rb"{\rtf1{\pict 00}}", "", "no text"),
    ],
)
def test_damage(data: bytes, text: str, note: str | None) -> None:
    read = parse(data, "a.rtf")[1]
    assert (read.text, read.note) == (text, note)


def test_groups_a_million_deep(
    engine_settings: Settings, tmp_path: Path, descriptor: Callable[[Path], int]
) -> None:
    path = tmp_path / "deep.rtf"
    path.write_bytes(b"{\\rtf1 top " + b"{\\b" * 1_000_000 + b" bottom" + b"}" * 1_000_000 + b" after}")
    with ParserClient(engine_settings) as client:
        parsed = client.parse(descriptor(path), path.name)
    assert (parsed.kind, parsed.text, parsed.note) == ("rtf", "top bottom after", None)
