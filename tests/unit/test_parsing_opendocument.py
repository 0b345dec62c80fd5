"""OpenDocument: texts, presentations and spreadsheets; written by odfdo, and by hand where that cannot."""

from __future__ import annotations

import io
import zipfile

import odfdo
import pytest

from semantik.exceptions import DocumentError
from semantik.parsing import parse

XMLNS = "urn:oasis:names:tc:opendocument:xmlns:"
WORDS = ("office", "style", "text", "table", "presentation")


def opendocument(
    kind: str,
    body: str,
    *,
    styles: str = "",
    others: dict[str, str] | None = None,
    prologue: str = "",
    mimetype: str | None = None,
) -> bytes:
    opened = " ".join(f'xmlns:{word}="{XMLNS}{word}:1.0"' for word in WORDS)
    opened += f' xmlns:draw="{XMLNS}drawing:1.0" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "mimetype", mimetype or f"application/vnd.oasis.opendocument.{kind}", zipfile.ZIP_STORED
        )
        archive.writestr(
            "content.xml",
            f"{prologue}<office:document-content {opened}><office:automatic-styles>{styles}"
            f"</office:automatic-styles><office:body><office:{kind}>{body}</office:{kind}></office:body>"
            "</office:document-content>",
        )
        for name, content in (others or {}).items():
            archive.writestr(name, content.replace(">", f" {opened}>", 1))
    return buffer.getvalue()


def saved(document: odfdo.Document) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def test_a_text_as_people_write_it() -> None:
    document = odfdo.Document("text")
    document.body.clear()
    document.body.append(odfdo.Header(1, "First part"))
    noted = odfdo.Paragraph("Some words   with\tspace.\nNext line.")
    noted.insert_note(after="words", note_id="n1", citation="1", body="The note.")
    document.body.append(noted)
    table = odfdo.Table("t", width=3, height=2)
    table.set_values([["k", "", "v"], [1, "two", ""]])
    document.body.append(table)
    document.body.append(odfdo.Header(2, "Sub"))
    items = odfdo.List(["item one", "item two"])
    document.body.append(items)
    kind, text = parse(saved(document), "letter")
    assert kind == "odt"
    assert text.text == (
        "First part\n\nSome words   with\tspace.\nNext line.\n\nThe note.\n\nk\t\tv\n1\ttwo\n\nSub\n\n"
        "item one\n\nitem two"
    )
    assert [(label, text.text[offset:].splitlines()[0]) for offset, label in text.sections] == [
        ("First part", "First part"),
        ("Sub", "Sub"),
    ]
    assert text.note is None


def test_what_is_not_shown_is_not_text() -> None:
    styles = (
        '<style:style style:name="T1" style:family="text"><style:text-properties text:display="none"/>'
        '</style:style><style:style style:name="T2" style:family="text"><style:text-properties/>'
        "</style:style>"
    )
    body = (
        "<text:tracked-changes><text:changed-region><text:deletion><text:p>deleted</text:p></text:deletion>"
        "</text:changed-region></text:tracked-changes>"
        '<text:p>kept <text:span text:style-name="T1">hidden<text:tab/></text:span>'
        '<text:span text:style-name="T2">shown</text:span>\n   <office:annotation>'
        "<dc:creator>Ann</dc:creator><text:p>Really?</text:p></office:annotation>"
        "after<text:s text:c='3'/>it</text:p>"
        '<text:section text:display="none"><text:p>hidden</text:p></text:section>'
        "<text:section><text:p>last</text:p></text:section>"
    )
    margins = (
        "<office:document-styles><office:styles><text:p>example</text:p></office:styles><office:master-styles>"
        "<style:master-page><style:header><text:p>Top</text:p></style:header><style:footer>"
        "<text:p>Page</text:p></style:footer></style:master-page><style:master-page><style:header>"
        "<text:p>Top</text:p></style:header><style:footer style:display='false'><text:p>off</text:p>"
        "</style:footer></style:master-page></office:master-styles></office:document-styles>"
    )
    text = parse(opendocument("text", body, styles=styles, others={"styles.xml": margins}), "a.odt")[1]
    assert text.text == "kept shown after   it\n\nlast\n\nReally?\n\nTop\n\nPage"
    assert [label for _, label in text.sections] == ["comments", "headers and footers"]


def test_slides_with_titles_and_notes() -> None:
    box = "<draw:frame{}><draw:text-box>{}</draw:text-box></draw:frame>"
    body = (
        "<draw:page>"
        + box.format("", "<text:p>a point</text:p>")
        + box.format(' presentation:class="title"', "<text:p>Opening</text:p>")
        + "<presentation:notes>"
        + box.format(' presentation:class="notes"', "<text:p>Say it.</text:p>")
        + "</presentation:notes></draw:page><draw:page/><draw:page><draw:frame><table:table><table:table-row>"
        "<table:table-cell><text:p>k</text:p></table:table-cell><table:table-cell><text:p>v</text:p>"
        "</table:table-cell></table:table-row></table:table></draw:frame></draw:page>"
    )
    kind, text = parse(opendocument("presentation", body), "a")
    assert kind == "odp"
    assert text.text == "Opening\n\na point\n\nSay it.\n\nk\tv"
    assert [(label, text.text[offset:][:3]) for offset, label in text.sections] == [
        ("slide 1: Opening", "Ope"),
        ("slide 1: notes", "Say"),
        ("slide 3", "k\tv"),
    ]


def test_sheets_as_they_are_shown() -> None:
    styles = (
        '<style:style style:name="ta2" style:family="table"><style:table-properties table:display="false"/>'
        "</style:style>"
    )
    cell = "<table:table-cell{}><text:p>{}</text:p></table:table-cell>"
    body = (
        '<table:table table:name="Prices"><table:table-row>'
        + cell.format("", "what")
        + cell.format(' office:value="1234.5"', "1.234,50 €")
        + "</table:table-row><table:table-row table:number-rows-repeated='2'>"
        + "<table:table-cell table:number-columns-repeated='2'/>"
        + cell.format(" table:number-columns-repeated='2'", "x")
        + "<table:table-cell table:number-columns-repeated='16380'/></table:table-row>"
        "<table:table-row table:number-rows-repeated='1048570'><table:table-cell "
        "table:number-columns-repeated='16384'/></table:table-row></table:table>"
        '<table:table table:name="Secret" table:style-name="ta2"><table:table-row>'
        + cell.format("", "hidden")
        + '</table:table-row></table:table><table:table table:name="Two"><table:table-row>'
        + cell.format("", "second sheet")
        + "</table:table-row></table:table>"
    )
    kind, text = parse(opendocument("spreadsheet", body, styles=styles), "a")
    assert kind == "ods"
    assert text.text == "what\t1.234,50 €\n\t\tx\tx\n\t\tx\tx\n\nsecond sheet"
    assert [(label, text.text[offset:][:4]) for offset, label in text.sections] == [
        ("sheet Prices", "what"),
        ("sheet Two", "seco"),
    ]
    assert text.note == "1 hidden sheet not read"


def test_a_spreadsheet_of_a_library() -> None:
    document = odfdo.Document("spreadsheet")
    document.body.clear()
    table = odfdo.Table("Data")
    table.set_values([["a", 1], ["b", 2]])
    document.body.append(table)
    text = parse(saved(document), "a.ods")[1]
    assert (text.text, text.sections) == ("a\t1\nb\t2", [(0, "sheet Data")])


def test_a_cell_that_repeats_itself_into_a_bomb() -> None:
    row = (
        "<table:table-row table:number-rows-repeated='1000000'><table:table-cell "
        f"table:number-columns-repeated='1000000'><text:p>{'x' * 1000}</text:p></table:table-cell>"
        "</table:table-row>"
    )
    with pytest.raises(DocumentError, match="more than 512 MB"):
        parse(opendocument("spreadsheet", f"<table:table>{row}</table:table>"), "a.ods")


def test_templates_are_documents_too() -> None:
    data = opendocument(
        "text", "<text:p>words</text:p>", mimetype="application/vnd.oasis.opendocument.text-template"
    )
    assert parse(data, "a")[1].text == "words"
    with pytest.raises(DocumentError, match=r"unsupported type: .*opendocument\.graphics"):
        parse(opendocument("drawing", "", mimetype="application/vnd.oasis.opendocument.graphics"), "a.odg")


def test_reasons_of_what_cannot_be_read() -> None:
    manifest = {"META-INF/manifest.xml": "<manifest><encryption-data/></manifest>"}
    with pytest.raises(DocumentError, match="encrypted OpenDocument file"):
        parse(opendocument("text", "", others=manifest), "a.odt")
    with pytest.raises(DocumentError, match=r"broken XML in content\.xml"):
        parse(opendocument("text", "<text:p>open"), "a.odt")
    with pytest.raises(DocumentError, match="document type"):
        parse(opendocument("text", "", prologue="<!DOCTYPE x [<!ENTITY a 'b'>]>"), "a.odt")


def test_ten_thousand_levels_deep() -> None:
    deep = "<text:section>" * 10_000 + "<text:p>bottom</text:p>" + "</text:section>" * 10_000
    spans = "<text:p>" + "<text:span>" * 10_000 + "x" + "</text:span>" * 10_000 + "</text:p>"
    assert parse(opendocument("text", deep + spans), "a.odt")[1].text == "bottom\n\nx"


def test_an_empty_text_says_so() -> None:
    text = parse(opendocument("text", "<text:p/>"), "a.odt")[1]
    assert (text.text, text.note) == ("", "no visible text")
