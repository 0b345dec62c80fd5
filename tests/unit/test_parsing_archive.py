"""Zip archives: what they hold decides, and bombs of any make are a reason, also in the parser's process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from semantik import parser
from semantik.exceptions import DocumentError
from semantik.parser import ParserClient
from semantik.parsing import kind_of, limits, parse
from semantik.parsing.archive import MAX_MEMBERS
from semantik.settings import Settings

APP = Path(parser.__file__).parent.parent
W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
X = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
TYPES = (
    '<Types><Default Extension="xlsx" ContentType="application/vnd.openxmlformats-officedocument.'
    'spreadsheetml.sheet"/><Override PartName="/a" ContentType="application/vnd.openxmlformats-'
    'officedocument.{}.main+xml"/></Types>'
)


def zipped(members: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def word(body: str, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    return zipped(
        {
            "[Content_Types].xml": TYPES.format("wordprocessingml.document"),
            "word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>",
        },
        compression,
    )


def workbook(strings: str, rows: str) -> bytes:
    relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    return zipped(
        {
            "[Content_Types].xml": TYPES.format("spreadsheetml.sheet"),
            "_rels/.rels": (
                f'<Relationships xmlns="{package}"><Relationship Id="a" Type="{relations}/officeDocument" '
                'Target="xl/workbook.xml"/></Relationships>'
            ),
            "xl/workbook.xml": (
                f'<workbook {X} {R}><sheets><sheet name="S" sheetId="1" r:id="a"/></sheets></workbook>'
            ),
            "xl/_rels/workbook.xml.rels": (
                f'<Relationships xmlns="{package}"><Relationship Id="a" '
                f'Type="{relations}/worksheet" Target="worksheets/sheet1.xml"/>'
                f'<Relationship Id="b" Type="{relations}/sharedStrings" Target="sharedStrings.xml"/>'
                "</Relationships>"
            ),
            "xl/sharedStrings.xml": f"<sst {X}>{strings}</sst>",
            "xl/worksheets/sheet1.xml": f"<worksheet {X}><sheetData>{rows}</sheetData></worksheet>",
        }
    )


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"[Content_Types].xml": TYPES.format("wordprocessingml.document")}, "docx"),
        ({"[Content_Types].xml": TYPES.format("presentationml.slideshow")}, "pptx"),
        ({"[Content_Types].xml": TYPES.format("spreadsheetml.template")}, "xlsx"),
        ({"[Content_Types].xml": "<Types/>", "xl/workbook.xml": "<workbook/>"}, "xlsx"),
        ({"mimetype": "application/vnd.oasis.opendocument.text\n"}, "odt"),
        ({"mimetype": "application/vnd.oasis.opendocument.spreadsheet-template"}, "ods"),
        ({"mimetype": "application/epub+zip"}, "epub"),
        ({"META-INF/container.xml": ""}, "epub"),
    ],
)
def test_members_decide_and_not_the_name(members: dict[str, str | bytes], kind: str) -> None:
    for name in ("a", "a.zip", "a.pptx", "a.pdf", "a.html"):
        assert kind_of(zipped(members), name) == kind


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (zipped({"a.txt": "words", "word/document.xml": "<x/>"}), "unsupported type: zip archive"),
        (zipped({"[Content_Types].xml": TYPES.format("visio.drawing")}), "unsupported type: zip archive"),
        (zipped({"inner.docx": word("<w:p/>")}), "unsupported type: zip archive"),
        (zipped({"mimetype": "application/epub+zip"}, zipfile.ZIP_LZMA), "not compressed by deflate"),
        (word("<w:p/>")[:-30], "broken zip archive"),
        (
            word("<w:p/>" * 50).replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
            "encrypted zip",
        ),
    ],
)
def test_other_archives_are_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse(data, "a.docx")


@pytest.mark.parametrize("suffix", ["docx", "pptx", "xlsx", "odt", "epub"])
def test_random_bytes_and_words_under_an_office_name(suffix: str) -> None:
    for data in (os.urandom(5_000).replace(b"PK", b"pk"), b"just words"):
        with pytest.raises(DocumentError, match=rf"not an? {suffix.upper()}: named \.{suffix}"):
            parse(b"\x00" + data, f"a.{suffix}")


def test_a_damaged_member_is_a_reason() -> None:
    data = bytearray(word("<w:p><w:r><w:t>words and more</w:t></w:r></w:p>" * 200))
    start = data.index(b"word/document.xml") + 60
    data[start : start + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(DocumentError, match=r"broken zip archive: word/document\.xml"):
        parse(bytes(data), "a.docx")


@pytest.mark.parametrize(
    "document",
    [
        word("<w:tbl><w:tr><w:tc><w:p><w:r><w:t>words</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"),
        workbook("<si><t>cell</t></si>", '<row r="1"><c r="A1" t="s"><v>0</v></c></row>'),
    ],
    ids=["docx", "xlsx"],
)
def test_damage_anywhere_is_a_reason_or_text(document: bytes) -> None:
    refused = 0
    for position in range(0, len(document), 3):
        damaged = bytearray(document)
        damaged[position] ^= 0x55
        try:
            text = parse(bytes(damaged), "a")[1]
        except DocumentError:
            refused += 1
        else:
            assert all(offset <= len(text.text) for offset, _ in text.sections)
    assert 0 < refused < len(document) / 3


def test_more_members_than_any_book_has() -> None:
    data = zipped({f"{number}": b"" for number in range(MAX_MEMBERS + 1)}, zipfile.ZIP_STORED)
    with pytest.raises(DocumentError, match=f"more than {MAX_MEMBERS} members"):
        parse(data, "a.epub")


def test_what_unpacks_to_too_much_is_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    spaces = " " * 1_000_000
    bomb = word(f"<w:p>{spaces * 60}</w:p>")
    with pytest.raises(DocumentError, match=f"more than {limits.MAX_RATIO} times its size"):
        parse(bomb, "a.docx")
    with pytest.raises(DocumentError, match=f"more than {limits.MAX_RATIO} times its size"):
        parse(workbook("", f"<row>{spaces * 60}</row>"), "a.xlsx")
    # Small enough to be free of the ratio, as a form with a wide margin is.
    assert parse(word(f"<w:p><w:r><w:t>x{spaces}y</w:t></w:r></w:p>"), "a.docx")[1].text == f"x{spaces}y"
    monkeypatch.setattr(limits, "MAX_UNPACKED", 1_000_000)
    with pytest.raises(DocumentError, match="unpacks to more than 0 MB"):
        parse(word(os.urandom(1_000_000).hex()), "a.docx")


def test_bombs_cost_their_document_alone(
    engine_settings: Settings, tmp_path: Path, descriptor: Callable[[Path], int]
) -> None:
    """In the real process, with a tenth of the memory that documents have by default."""
    long = "x" * 100_000
    bombs = {
        "spaces.docx": ("times its size", word(f"<w:p>{' ' * 60_000_000}</w:p>")),
        "words.docx": (
            "100 MB of memory",
            word(f"<w:p><w:r><w:t>{'word ' * 6_000_000}</w:t></w:r></w:p>", zipfile.ZIP_STORED),
        ),
        # Cells refer to one long string again and again: nothing in the archive is large.
        "strings.xlsx": (
            "100 MB of memory",
            workbook(f"<si><t>{long}</t></si>", '<row><c t="s"><v>0</v></c></row>' * 100_000),
        ),
    }
    good = tmp_path / "good.docx"
    good.write_bytes(word("<w:p><w:r><w:t>words</w:t></w:r></w:p>"))
    settings = replace(engine_settings, parse_memory_mb=100, parse_seconds=30.0)
    with ParserClient(settings) as client:
        for name, (reason, data) in bombs.items():
            path = tmp_path / name
            path.write_bytes(data)
            with pytest.raises(DocumentError, match=reason):
                client.parse(descriptor(path), name)
            parsed = client.parse(descriptor(good), good.name)
            assert (parsed.kind, parsed.text) == ("docx", "words")


def test_libraries_write_no_file_and_load_late() -> None:
    """As on a host: no file may grow, and what one kind needs is loaded for that kind."""
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from semantik.parsing import parse
data = [bytes.fromhex(line) for line in sys.stdin]
before = {"lxml", "python_calamine", "selectolax"} & set(sys.modules)
print(sorted(before), [parse(each, "a")[1].text for each in data])
"""
    documents = [
        word("<w:p><w:r><w:t>words</w:t></w:r></w:p>"),
        workbook("<si><t>cell</t></si>", '<row><c t="s"><v>0</v></c></row>'),
    ]
    out = subprocess.run(
        [sys.executable, "-P", "-c", script],
        input="\n".join(each.hex() for each in documents),
        env={"PYTHONPATH": str(APP)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "[] ['words', 'cell']"
