"""Every format goes through the parser's unit, with its sandbox, on a booted host."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from email.message import EmailMessage

import docx
import pptx
import pytest
import xlsxwriter
from clusters import Cluster, Operator, rows
from odfdo import Document, Paragraph

Put = Callable[..., str]

FACT = "The lighthouse keeper of {} counts puffins at dawn."


def word(place: str) -> bytes:
    document = docx.Document()
    document.add_heading("Birds", 1)
    document.add_paragraph(FACT.format(place))
    return saved(document)


def slides(place: str) -> bytes:
    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text = "Birds"
    slide.placeholders[1].text = FACT.format(place)
    return saved(show)


def saved(document: docx.document.Document | pptx.presentation.Presentation) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def sheet(place: str) -> bytes:
    buffer = io.BytesIO()
    with xlsxwriter.Workbook(buffer) as book:
        book.add_worksheet("Birds").write_row(0, 0, ["fact", FACT.format(place)])
    return buffer.getvalue()


def open_document(place: str) -> bytes:
    document = Document("text")
    document.body.append(Paragraph(FACT.format(place)))
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def book(place: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="book.opf" media-type="application/oebps-package+xml"/>'
            "</rootfiles></container>",
        )
        archive.writestr(
            "book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="a" href="a.xhtml" '
            'media-type="application/xhtml+xml"/></manifest><spine><itemref idref="a"/></spine></package>',
        )
        archive.writestr("a.xhtml", f"<html><body><h1>Birds</h1><p>{FACT.format(place)}</p></body></html>")
    return buffer.getvalue()


def mail(place: str) -> bytes:
    inner = EmailMessage()
    inner["Subject"], inner["From"] = "Birds", "keeper@example.org"
    inner.set_content(FACT.format(place))
    outer = EmailMessage()
    outer["Subject"], outer["From"] = "Fwd: Birds", "coast@example.org"
    outer.set_content("See below.")
    outer.add_attachment(inner)
    return outer.as_bytes()


def rich(place: str) -> bytes:
    return rb"{\rtf1\ansi\deff0{\fonttbl{\f0 Arial;}}\f0 " + FACT.format(place).encode() + rb"\par}"


# The place in the text, by which each document is known again.
FORMATS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "report.docx": ("Stora", word),
    "talk.pptx": ("Talisker", slides),
    "table.xlsx": ("Tarbert", sheet),
    "letter.odt": ("Lerwick", open_document),
    "novel.epub": ("Noss", book),
    "message.eml": ("Mingulay", mail),
    "notes.rtf": ("Rona", rich),
    "list.csv": ("Lunga", lambda place: f'id,fact\n1,"{FACT.format(place)}"\n'.encode()),
    "packed.txt.gz": ("Papa", lambda place: gzip.compress(FACT.format(place).encode())),
    "old.txt": ("G\u00e1sadalur", lambda place: (FACT.format(place) * 40).encode("utf-16")),
}


@pytest.mark.unit("semantik-worker@0.service", "semantik-worker@1.service", "semantik-parser@*.service")
def test_every_format_is_read_behind_the_socket(cluster: Cluster, operator: Operator, documents: Put) -> None:
    uri = documents({name: make(place) for name, (place, make) in FORMATS.items()})
    shown = operator.wait(operator.submit(uri, "testinfra-formats"))
    said = operator.json("show", shown["id"])
    assert shown["state"] == "completed", said["failures"]
    number = rows(cluster, "SELECT id FROM collections WHERE name = 'testinfra-formats'")[0]
    for name, (place, _) in FORMATS.items():
        found = rows(
            cluster,
            f"SELECT count(*) > 0 FROM chunks_{number} c JOIN documents d ON d.id = c.document_id "
            f"WHERE d.uri = '{uri}/{name}' AND c.text LIKE '%{place} counts puffins%'",
        )
        assert found == ["t"], name
    operator.run("collections", "drop", "testinfra-formats", "--yes")
