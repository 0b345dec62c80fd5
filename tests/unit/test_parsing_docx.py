"""DOCX: what a reader sees, in reading order; written by python-docx, and by hand where that cannot."""

from __future__ import annotations

import io
import zipfile

import docx
import pytest

from semantik.exceptions import DocumentError
from semantik.parsing import parse
from semantik.parsing.text import Text

TRANSITIONAL = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
STRICT = "http://purl.oclc.org/ooxml/wordprocessingml/main"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def package(members: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def word(
    body: str,
    parts: dict[str, str] | None = None,
    *,
    namespace: str = TRANSITIONAL,
    main: str = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml",
) -> bytes:
    """Write a document with this body; `parts` maps a kind of relationship to the XML of its part."""
    opened = (
        f'xmlns:w="{namespace}" xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" '
        'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
    )
    members: dict[str, str | bytes] = {
        "[Content_Types].xml": (
            f'<Types xmlns="{PACKAGE}/content-types"><Override PartName="/word/document.xml" '
            f'ContentType="{main}"/></Types>'
        ),
        "_rels/.rels": (
            f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="a" '
            f'Type="{RELATIONS}/officeDocument" Target="/word/document.xml"/></Relationships>'
        ),
        "word/document.xml": f"<w:document {opened}><w:body>{body}</w:body></w:document>",
    }
    targets = ""
    for number, (kind, content) in enumerate((parts or {}).items()):
        kind = kind.rstrip("0123456789")
        members[f"word/part{number}.xml"] = content.replace(">", f" {opened}>", 1)
        targets += f'<Relationship Id="r{number}" Type="{RELATIONS}/{kind}" Target="part{number}.xml"/>'
    members["word/_rels/document.xml.rels"] = (
        f'<Relationships xmlns="{PACKAGE}/relationships">{targets}</Relationships>'
    )
    return package(members)


def read(data: bytes, name: str = "a.docx") -> Text:
    kind, text = parse(data, name)
    assert kind == "docx"
    return text


def paragraph(words: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{words}</w:t></w:r></w:p>"


def test_a_document_as_people_write_it() -> None:
    document = docx.Document()
    document.add_heading("The title", level=0)
    document.add_paragraph("Before the heading.")
    document.add_heading("First part", level=1)
    first = document.add_paragraph("Some ")
    first.add_run("bold").bold = True
    first.add_run(" words.\tAnd a tab.\nA new line.")
    table = document.add_table(2, 3)
    for row, words in zip(table.rows, (("k", "", "v"), ("one", "two", "")), strict=True):
        for cell, word_ in zip(row.cells, words, strict=True):
            cell.text = word_
    table.cell(1, 0).add_paragraph("more")
    document.add_heading("Sub", level=3)
    document.add_paragraph("Item", style="List Bullet")
    document.sections[0].header.paragraphs[0].text = "Company"
    document.sections[0].footer.paragraphs[0].text = "Confidential"
    buffer = io.BytesIO()
    document.save(buffer)
    text = read(buffer.getvalue(), "named.txt")
    assert text.text == (
        "The title\n\nBefore the heading.\n\nFirst part\n\nSome bold words.\tAnd a tab.\nA new line.\n\n"
        "k\t\tv\none more\ttwo\n\nSub\n\nItem\n\nCompany\n\nConfidential"
    )
    assert [(label, text.text[offset:].splitlines()[0]) for offset, label in text.sections] == [
        ("The title", "The title"),
        ("First part", "First part"),
        ("Sub", "Sub"),
        ("headers and footers", "Company"),
    ]
    assert text.note is None


@pytest.mark.parametrize("namespace", [TRANSITIONAL, STRICT])
def test_what_is_not_shown_is_not_text(namespace: str) -> None:
    body = (
        "<w:p><w:r><w:t xml:space='preserve'>kept </w:t></w:r>"
        "<w:del><w:r><w:delText>deleted</w:delText><w:t>deleted</w:t></w:r></w:del>"
        "<w:moveFrom><w:r><w:t>moved away</w:t></w:r></w:moveFrom>"
        "<w:ins><w:r><w:t>inserted</w:t></w:r></w:ins>"
        "<w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t><w:tab/></w:r>"
        "<w:r><w:rPr><w:vanish w:val='0'/></w:rPr><w:t>, shown</w:t></w:r></w:p>"
        "<w:p><w:pPr><w:tabs><w:tab w:val='left'/></w:tabs><w:rPr><w:vanish/></w:rPr></w:pPr>"
        "<w:r><w:fldChar w:fldCharType='begin'/></w:r><w:r><w:instrText>IF </w:instrText></w:r>"
        "<w:r><w:fldChar w:fldCharType='begin'/></w:r><w:r><w:instrText>PAGE</w:instrText></w:r>"
        "<w:r><w:fldChar w:fldCharType='separate'/></w:r><w:r><w:t>inner code</w:t></w:r>"
        "<w:r><w:fldChar w:fldCharType='end'/></w:r>"
        "<w:r><w:fldChar w:fldCharType='separate'/></w:r><w:r><w:t>result</w:t></w:r>"
        "<w:r><w:fldChar w:fldCharType='end'/></w:r><w:r><w:t>, after</w:t></w:r></w:p>"
        "<w:p><m:oMath><m:r><m:t>x=1</m:t></m:r></m:oMath></w:p>"
    )
    assert read(word(body, namespace=namespace)).text == "kept inserted, shown\n\nresult, after\n\nx=1"


def test_text_boxes_notes_and_nested_tables_keep_their_place() -> None:
    body = (
        "<w:p><w:r><w:t>Anchor</w:t><w:footnoteReference w:id='2'/>"
        "<mc:AlternateContent><mc:Choice><w:txbxContent>"
        + paragraph("in a box")
        + "</w:txbxContent></mc:Choice><mc:Fallback><w:txbxContent>"
        + paragraph("in a box")
        + "</w:txbxContent></mc:Fallback></mc:AlternateContent></w:r>"
        "<w:r><w:t xml:space='preserve'> goes on</w:t></w:r></w:p>"
        "<w:tbl><w:tr><w:tc>"
        + paragraph("a")
        + "<w:tbl><w:tr><w:tc>"
        + paragraph("inner 1")
        + "</w:tc><w:tc>"
        + paragraph("inner 2")
        + "</w:tc></w:tr></w:tbl></w:tc><w:tc>"
        + paragraph("b")
        + "</w:tc></w:tr></w:tbl>"
        "<w:tbl><w:tr><w:tc>" + paragraph("framed") + paragraph("twice") + "</w:tc></w:tr></w:tbl>"
        "<w:sdt><w:sdtContent>" + paragraph("last") + "</w:sdtContent></w:sdt>"
    )
    parts = {
        "footnotes": "<w:footnotes><w:footnote w:type='separator' w:id='0'>"
        + paragraph("never referred to")
        + "</w:footnote><w:footnote w:id='2'>"
        + paragraph("The note.")
        + paragraph("Its second line.")
        + "</w:footnote></w:footnotes>",
        "comments": "<w:comments><w:comment w:id='0' w:author='A'>"
        + paragraph("Really?")
        + "</w:comment></w:comments>",
        "header1": "<w:hdr>" + paragraph("Top") + "</w:hdr>",
        "header2": "<w:hdr>" + paragraph("Top") + "</w:hdr>",
    }
    text = read(word(body, parts))
    assert text.text == (
        "Anchor goes on\n\nThe note.\nIts second line.\n\nin a box\n\na inner 1 inner 2\tb\n\n"
        "framed\ntwice\n\nlast\n\nReally?\n\nTop"
    )
    assert [label for _, label in text.sections] == ["comments", "headers and footers"]


def test_headings_are_known_by_name_by_level_and_by_descent() -> None:
    style = "<w:style w:type='paragraph' w:styleId='{}'><w:name w:val='{}'/>{}</w:style>"
    styles = (
        "<w:styles>"
        + style.format("berschrift1", "heading 1", "")
        + style.format("Chapter", "Our chapter", "<w:basedOn w:val='berschrift1'/>")
        + style.format("Level", "Level", "<w:pPr><w:outlineLvl w:val='2'/></w:pPr>")
        + style.format("Body", "Body", "<w:basedOn w:val='Loop'/><w:pPr><w:outlineLvl w:val='9'/></w:pPr>")
        + style.format("Loop", "Loop", "<w:basedOn w:val='Body'/>")
        + "</w:styles>"
    )
    names = ("berschrift1", "Chapter", "Level", "Body", "Loop", "Heading1")
    body = "".join(paragraph(name, f"<w:pStyle w:val='{name}'/>") for name in names)
    body += paragraph("direct", "<w:outlineLvl w:val='0'/>")
    sections = read(word(body, {"styles": styles})).sections
    assert [label for _, label in sections] == ["berschrift1", "Chapter", "Level", "direct"]


@pytest.mark.parametrize(
    "main",
    [
        "application/vnd.ms-word.document.macroEnabled.main+xml",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
        "application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
    ],
)
def test_templates_and_macros_are_documents_too(main: str) -> None:
    assert read(word(paragraph("words"), main=main), "a.dotm").text == "words"


def test_an_empty_document_says_so() -> None:
    text = read(word("<w:p/>"))
    assert (text.text, text.sections, text.note) == ("", [], "no visible text")


def test_ten_thousand_levels_deep() -> None:
    deep = "<w:sdt>" * 10_000 + paragraph("bottom") + "</w:sdt>" * 10_000
    tables = "<w:tbl><w:tr><w:tc>" * 3_000 + paragraph("cell") + "</w:tc></w:tr></w:tbl>" * 3_000
    assert read(word(deep + tables)).text == "bottom\n\ncell"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            ("<w:body>", "<w:body><w:oops>"),
            r"broken XML in word/document\.xml: Opening and ending tag mismatch",
        ),
        (
            ("<w:document", "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><w:document"),
            "document type",
        ),
        (("<w:t>", "<w:t>&#0;"), r"broken XML in word/document\.xml"),
        (("words", "&undefined;"), r"broken XML in word/document\.xml"),
    ],
)
def test_broken_and_malicious_xml_is_a_reason(change: tuple[str, str], reason: str) -> None:
    with zipfile.ZipFile(io.BytesIO(word(paragraph("words")))) as archive:
        members = {name: archive.read(name).decode() for name in archive.namelist()}
    assert read(package(dict(members))).text == "words"
    members["word/document.xml"] = members["word/document.xml"].replace(*change)
    with pytest.raises(DocumentError, match=reason):
        parse(package(dict(members)), "a.docx")


def test_a_main_part_of_another_name() -> None:
    with zipfile.ZipFile(io.BytesIO(word(paragraph("words")))) as archive:
        members: dict[str, str | bytes] = {
            name.replace("document.xml", "document2.xml"): archive.read(name).replace(
                b"document.xml", b"document2.xml"
            )
            for name in archive.namelist()
        }
    assert read(package(members)).text == "words"
    del members["word/document2.xml"]
    with pytest.raises(DocumentError, match=r"word/document\.xml is missing"):
        parse(package(members), "a.docx")
