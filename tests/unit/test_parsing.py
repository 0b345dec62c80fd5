"""Each format on documents made on the spot: text, sections, and the reasons of what cannot be read."""

from __future__ import annotations

import codecs
from collections.abc import Callable

import pytest

from semantik.exceptions import DocumentError
from semantik.parsing import kind_of, parse

GERMAN = "Die Größe der Bäume überrascht häufig: Ästhetik, Öl und Übermaß. " * 20
RUSSIAN = "Быстрая коричневая лиса перепрыгивает через ленивую собаку. " * 20


def labelled(data: bytes, name: str) -> list[tuple[str, str]]:
    """Return (label, the first word behind its offset) for each section."""
    text = parse(data, name)[1]
    return [(label, text.text[offset:].split(maxsplit=1)[0]) for offset, label in text.sections]


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (b"%PDF-1.4", "notes.txt", "pdf"),
        (b"\x00\x00junk\n%PDF-1.4", "scan", "pdf"),
        (b"HTTP/1.1 200 OK\n\n%PDF-1.4\n1 0 obj\n<<>>\nendobj", "scan", "pdf"),
        (b"A PDF starts with `%PDF-1.4`.\n", "README.md", "markdown"),
        (b"BZh is what bzip2 starts with", "notes", "text"),
        (b"<!-- licence -->\n" * 60 + b"# Title", "README.md", "markdown"),  # 2^60 ways to see comments
        (b"<!-- a --> b -->" + b"<html>", "page.md", "markdown"),
        (b"<!DOCTYPE html><p>x", "page.txt", "html"),
        (b"\xef\xbb\xbf <!-- c -->\n<HTML>", "page", "html"),
        (b'<?xml version="1.0"?><html xmlns="x">', "page.xml", "html"),
        (b"<p>a fragment", "page.HTM", "html"),
        (b"# Title", "README.md", "markdown"),
        (b"The tag <html> starts a page", "notes", "text"),
        (b"a,b\n1,2\n", "table.csv", "csv"),
        (b"", "empty", "text"),
    ],
)
def test_kind_is_by_content_before_name(data: bytes, name: str, kind: str) -> None:
    assert kind_of(data, name) == kind


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (b"PK\x03\x04rest", "a.docx", "broken zip archive"),
        (b"\x7fELF\x02\x01", "a.txt", "unsupported type: ELF"),
        (bytes(range(256)) * 20, "a.bin", "unsupported type: binary"),
        (bytes(range(256)) * 20, "a.md", "unsupported type: binary"),
        (bytes(257) + b"ustar\x0000" + b"a text in an archive\n" * 5000, "a.tar", "unsupported type: tar"),
        (b"just words", "a.pdf", r"not a PDF: named \.pdf"),
    ],
)
def test_other_types_are_named(data: bytes, name: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse(data, name)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "utf-8"),
        (GERMAN, "utf-8-sig"),
        (GERMAN, "utf-16"),
        (GERMAN, "utf-16-le"),
        (GERMAN, "utf-16-be"),
        (GERMAN, "utf-32"),
        (GERMAN, "cp1252"),
        (RUSSIAN, "cp1251"),
    ],
)
def test_encodings_of_text(text: str, encoding: str) -> None:
    assert parse(text.encode(encoding), "a.txt")[1].text == text


def test_damaged_utf8_stays_utf8() -> None:
    data = GERMAN.encode()
    cut = data[:500] + b"\xff\xfe\xc3" + data[500:]
    text = parse(cut, "a.txt")[1].text
    assert text.replace("\ufffd", "") == GERMAN


def test_nothing_that_postgresql_refuses_gets_through() -> None:
    text = parse(b"one\x00two " + b"and a good deal of text around it " * 9, "a.txt")[1].text
    assert text.startswith("one two")
    # A lone surrogate in UTF-16 is an error of its encoder.
    data = codecs.BOM_UTF16_LE + "before".encode("utf-16-le") + b"\x00\xd8" + "after".encode("utf-16-le")
    text = parse(data, "a.txt")[1].text
    assert text.encode().startswith(b"before")
    assert "\x00" not in text


def test_line_ends_are_one() -> None:
    assert parse(b"a\r\nb\rc\n", "a.txt")[1].text == "a\nb\nc\n"


def test_markdown_keeps_its_text_and_knows_its_headings() -> None:
    source = (
        "# The *first* [part](x.html) #\n\nText.\n\n```sh\n# a comment\n```\n\n"
        "Under\n=====\n\n- item\n---\n\n   ### Third\n\n#hashtag\n"
    )
    kind, text = parse(source.encode(), "a.md")
    assert kind == "markdown"
    assert text.text == source
    assert labelled(source.encode(), "a.md") == [
        ("The first part", "#"),
        ("Under", "Under"),
        ("Third", "###"),
    ]


def test_markdown_headings_of_any_length() -> None:
    """Time that grows with the square of a line's length would be hours here."""
    line = "# " + "[" * 1_000_000
    _, result = parse(f"{line}\n\n# Next\n".encode(), "a.md")
    assert [offset for offset, _ in result.sections] == [0, len(line) + 2]


def test_html_reads_as_people_see_it() -> None:
    source = b"""<!doctype html><html><head><title> A
      title</title><style>p {color: red}</style><script>var secret</script></head>
      <body><nav><a href=x>Home</a></nav><h1>Top<a class="headerlink" href="#">\xc2\xb6</a></h1>
      <p>One  <b>bold</b>\nword.<br>Next line.</p><!-- unseen -->
      <div hidden>unseen</div><p style="display: none">unseen</p><noscript>unseen</noscript>
      <ul><li>first<li>second</ul><pre>\n  code\n    more</pre>
      <table><tr><th>k<th>v<tr><td>1<td>2</table><h2>Sub</h2>tail"""
    kind, text = parse(source, "a")
    assert kind == "html"
    assert text.text == (
        "A title\n\nHome\n\nTop\n\nOne bold word.\nNext line.\n\nfirst\nsecond\n\n  code\n    more\n\n"
        "k\tv\n1\t2\n\nSub\n\ntail"
    )
    assert labelled(source, "a") == [("A title", "A"), ("Top", "Top"), ("Sub", "Sub")]


def test_html_declares_its_encoding() -> None:
    page = '<html><head><meta charset="koi8-r"></head><body><p>Привет, мир</p></body></html>'
    assert parse(page.encode("koi8-r"), "a.html")[1].text == "Привет, мир"
    # A declaration that is not true gives way to the content.
    false = page.replace("koi8-r", "ascii-not-an-encoding")
    assert parse(false.encode(), "a.html")[1].text == "Привет, мир"


def test_html_nested_ten_thousand_deep() -> None:
    text = parse(b"<html><body>" + b"<div>" * 10_000 + b"bottom", "a.html")[1]
    assert text.text == "bottom"


def test_a_page_without_words_says_so() -> None:
    text = parse(b"<html><body><script>draw()</script></body></html>", "a.html")[1]
    assert (text.text, text.note) == ("", "no visible text")


def test_pdf_pages_are_sections(make_pdf: Callable[..., bytes]) -> None:
    kind, text = parse(make_pdf(["Hello there", "Second page"]), "a")
    assert kind == "pdf"
    assert text.text == "Hello there\n\nSecond page"
    assert text.sections == [(0, "page 1"), (13, "page 2")]


def test_pdf_of_text_and_scans_says_what_is_missing(make_pdf: Callable[..., bytes]) -> None:
    image = ") Tj ET q 9 0 0 9 0 0 cm BI /W 1 /H 1 /CS /G /BPC 8 ID a EI Q BT ("
    text = parse(make_pdf(["Hello there", image, "", image]), "a.pdf")[1]  # an empty page lacks nothing
    assert text.text == "Hello there"
    assert text.note == "2 pages without text (scans need OCR), page 2 first"


def test_pdf_that_cannot_be_read(make_pdf: Callable[..., bytes]) -> None:
    encrypt = (
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /O ({'x' * 32}) /U ({'y' * 32}) /P -1 >> "
        f"/ID [({'a' * 16}) ({'a' * 16})]"
    )
    with pytest.raises(DocumentError, match="encrypted PDF"):
        parse(make_pdf(["secret"], trailer=encrypt), "a.pdf")
    with pytest.raises(DocumentError, match=r"no text found in 1 pages .*OCR"):
        parse(make_pdf([""]), "a.pdf")
    with pytest.raises(DocumentError, match="broken PDF"):
        parse(b"%PDF-1.7\n" + bytes(range(256)) * 10, "a.pdf")


def test_formulas_of_html_are_text_without_their_source() -> None:
    page = b"<p>Area <math><mi>a</mi><mo>=</mo><mn>2</mn><annotation>\\frac{x}</annotation></math> here</p>"
    assert parse(b"<html><body>" + page + b"</body></html>", "a.html")[1].text == "Area a=2 here"
