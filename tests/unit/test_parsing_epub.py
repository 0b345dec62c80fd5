"""EPUB: chapters in the order of the spine, titled by the table of contents."""

from __future__ import annotations

import io
import zipfile

import pytest

from semantik.exceptions import DocumentError
from semantik.parsing import parse

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
    'full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
NAVIGATION = (
    '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><body>'
    '<nav epub:type="toc"><ol><li><a href="text/one.xhtml">One:\n the start</a></li>'
    '<li><a href="text/one.xhtml#later">later</a></li><li><a href="text/two%20b.xhtml#top">Two</a></li></ol>'
    "</nav></body></html>"
)
NCX = (
    '<!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "http://www.daisy.org/z3986/2005/ncx-2005-1.dtd">'
    '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><docTitle><text>Book</text></docTitle><navMap>'
    "<navPoint><navLabel><text>One: the start</text></navLabel><content src='text/one.xhtml'/></navPoint>"
    "<navPoint><navLabel><text>Two</text></navLabel><content src='text/two%20b.xhtml'/></navPoint>"
    "</navMap></ncx>"
)
CHAPTERS = {
    "text/one.xhtml": "<title>Book</title></head><body><h1>I</h1><p>First.</p><h2>Sub</h2><p>More.</p>",
    "text/two b.xhtml": "<title/><script src='x.js'/></head><body><p>Second<br/>line, <a id='x'/>open.</p>",
    "text/three.xhtml": "<title>Book</title></head><body><h1>Three</h1><p>Third.</p>",
}


def book(
    *,
    contents: str = NAVIGATION,
    chapters: dict[str, str] | None = None,
    spine: str = '<itemref idref="c2"/><itemref idref="c0"/><itemref idref="c1"/>',
    others: dict[str, str] | None = None,
    mimetype: bool = True,
    prologue: str = "",
) -> bytes:
    chapters = CHAPTERS if chapters is None else chapters
    items = "".join(
        f'<item id="c{index}" href="{name.replace(" ", "%20")}" media-type="application/xhtml+xml"/>'
        for index, name in enumerate(chapters)
    )
    nav = "nav.xhtml" if "<html" in contents else "toc.ncx"
    kind = "application/xhtml+xml" if nav == "nav.xhtml" else "application/x-dtbncx+xml"
    properties = 'properties="nav"' if nav == "nav.xhtml" else ""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        if mimetype:
            archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr(
            "OEBPS/book.opf",
            f'{prologue}<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}'
            f'<item id="nav" href="{nav}" media-type="{kind}" {properties}/>'
            '<item id="png" href="a.png" media-type="image/png"/>'
            f"</manifest><spine>{spine}</spine></package>",
        )
        archive.writestr(f"OEBPS/{nav}", contents)
        for name, body in chapters.items():
            archive.writestr(
                f"OEBPS/{name}",
                f'<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head>{body}'
                "</body></html>",
            )
        for name, content in (others or {}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("contents", [NAVIGATION, NCX])
@pytest.mark.parametrize("mimetype", [True, False])
def test_chapters_in_the_order_of_the_spine(contents: str, mimetype: bool) -> None:
    kind, text = parse(book(contents=contents, mimetype=mimetype), "book")
    assert kind == "epub"
    assert text.text == ("Three\n\nThird.\n\nI\n\nFirst.\n\nSub\n\nMore.\n\nSecond\nline, open.")
    assert [(label, text.text[offset:].split()[0]) for offset, label in text.sections] == [
        ("Three", "Three"),
        ("One: the start", "I"),
        ("Sub", "Sub"),
        ("Two", "Second"),
    ]
    assert text.note is None


def test_missing_and_locked_chapters() -> None:
    spine = '<itemref idref="c0"/><itemref idref="c1"/><itemref idref="c9"/><itemref idref="png"/>'
    lock = (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><EncryptedData '
        'xmlns="http://www.w3.org/2001/04/xmlenc#"><CipherData><CipherReference URI="OEBPS/{}"/></CipherData>'
        "</EncryptedData></encryption>"
    )
    font = {"META-INF/encryption.xml": lock.format("fonts/a.otf")}
    assert parse(book(others=font), "a.epub")[1].note is None
    one = {"META-INF/encryption.xml": lock.format("text/one.xhtml")}
    text = parse(book(others=one, spine=spine), "a.epub")[1]
    assert (text.text, text.note) == ("Second\nline, open.", "1 of 2 chapters encrypted")
    with pytest.raises(DocumentError, match=r"encrypted EPUB: .*DRM"):
        parse(book(others=one, spine='<itemref idref="c0"/>'), "a.epub")


@pytest.mark.parametrize(
    ("spine", "reason"),
    [("", "has no spine"), ("<itemref idref=", r"broken XML in OEBPS/book\.opf")],
)
def test_broken_books_are_a_reason(spine: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse(book(spine=spine), "a.epub")


def test_entities_of_a_package_are_not_followed() -> None:
    bomb = '<!DOCTYPE ncx [<!ENTITY a "' + "ha" * 500 + '">'
    for before, name in zip("abcdefg", "bcdefgh", strict=True):
        bomb += f'<!ENTITY {name} "' + f"&{before};" * 10 + '">'
    bomb += "]>"
    with pytest.raises(DocumentError, match=r"broken XML in OEBPS/book\.opf"):
        parse(book(prologue=bomb), "a.epub")
    with pytest.raises(DocumentError, match=r"broken XML in OEBPS/book\.opf"):
        parse(book(prologue='<!DOCTYPE p [<!ENTITY a SYSTEM "file:///etc/passwd">]>'), "a.epub")


def test_a_broken_table_of_contents_costs_titles_alone() -> None:
    text = parse(book(contents=NCX.replace("Two", "&undeclared;")), "a.epub")[1]
    assert [label for _, label in text.sections] == ["Three", "One: the start", "Sub"]


def test_a_book_without_words_says_so() -> None:
    text = parse(book(chapters={"a.xhtml": "</head><body>"}, spine='<itemref idref="c0"/>'), "a.epub")[1]
    assert (text.text, text.note) == ("", "no visible text")
