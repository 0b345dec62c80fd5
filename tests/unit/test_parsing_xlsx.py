"""XLSX: sheets as sections, cells as they are meant; what would take all memory is a reason."""

from __future__ import annotations

import base64
import datetime
import io
import re
import zipfile
import zlib

import pytest
import xlsxwriter

from semantik.exceptions import DocumentError
from semantik.parsing import parse
from semantik.parsing.xlsx import MAX_CELLS

# A sheet "Old" and a hidden one, written by xlwt 1.3.0: of 2017, and so no dependency.
XLS = zlib.decompress(
    base64.b85decode(
        b"c-rk)J!lj`6#iy!@7LtA7cW90gd<?om?osLNj3@^8)Fni5kW86EkcgFunB}%Xf$3a2v&+sAdOAb#vioM&O$iRLJ)*IEmH{!7Rjw|"
        b"-tC4<ydnq5VPw8#zIprR&Cc6>Z)SJ)Lm^RIeA-dMCJZ8gvKvLHN++m9{SyP!?z&R+>j)KBVOJp<p+JU$c-8zqEMq9+U4n)u`deb)"
        b"8<oqL!bmP_ry7Xk>_b{e9|nX@xu@YFl{nhjuU6)9=Dp01+4eQ_5Nqx*50Gt9TtdMd={f4<@kOnR+v3Cm&$-VR*7Ttb?_?g|xGO5Q"
        b"K^$`?(wTp=p;K?d5-4)RcGh;%nIe)D!X^B2Q@~GuuD(erePi_kr2oB9AFiRlr|G~v+^a$+Vjg=?2*{QI&Sb1S<>&dJjCKg8CM?U&"
        b"u6o%o3pLE<9BZ0p?6f`Z*fTM?Jo9umHcaPcPVy#V3oR@s_yPtk*sG6zd^|liYF=T@JTKvuh5mr_3@&cU9@II`E!sNwFdt#Q#aG?W"
        b"atCvg+@rdCw9OMvF0jpQZtbRV`Wc_hgH`e&lJhHPUv%cbn}<nW9xh!=E`K%`(M2yFi~7rB0llJEJh(6M()4TLEeT(l+y7b~BAVg("
        b"?s{*t7OWx0VuJa)7UO$QAnw_VP4?14u*C{RX;5p$GkzdLRWHd#L_w_cZjFMd83lPq{8UlvsVXQaC@3f>C@5?Lg!efwcO80VSHYjF"
        b"Veh}r8kMs8P4eI39CCEb(6;mhvQ#^mt1Ex@At?N7i7oc={})PJpwS&nVvPNmtUG^cyCJIYXUiRp?VCdNj$f|F&mA8B5B?tQ3j"
    )
)


def workbook(sheets: dict[str, list[list[object]]], *, hidden: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with xlsxwriter.Workbook(buffer, {"in_memory": True, "default_date_format": "yyyy-mm-dd hh:mm"}) as book:
        for name, rows in sheets.items():
            sheet = book.add_worksheet(name)
            for number, row in enumerate(rows):
                sheet.write_row(number, 0, row)
            if name in hidden:
                sheet.hide()
    return buffer.getvalue()


def with_rows(rows: str, start: str = "") -> bytes:
    """Write a workbook whose sheet has these rows."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(workbook({"S": [["x"]]}))) as old, zipfile.ZipFile(buffer, "w", 8) as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "xl/worksheets/sheet1.xml":
                content = re.sub(
                    rb"<sheetData>.*</sheetData>", f"<sheetData>{rows}</sheetData>".encode(), content
                )
                content = content.replace(b"<worksheet", start.encode() + b"<worksheet", 1)
            new.writestr(name, content)
    return buffer.getvalue()


def test_sheets_are_sections_and_cells_read_as_meant() -> None:
    data = workbook(
        {
            "Prices": [
                ["what", "n", "when"],
                ["two\nlines ", 3, datetime.datetime(2024, 2, 29)],
                [],
                ["", 0.1, datetime.datetime(2024, 2, 29, 12, 30, 5)],
                [True, -12345678901, "", ""],
            ],
            "Empty": [],
            "Grün & Co": [["=1+1", "last"]],
        }
    )
    kind, text = parse(data, "prices")
    assert kind == "xlsx"
    assert text.text == (
        "what\tn\twhen\ntwo lines\t3\t2024-02-29\n\t0.1\t2024-02-29 12:30:05\nTRUE\t-12345678901\n\n0\tlast"
    )
    assert [(label, text.text[offset:][:4]) for offset, label in text.sections] == [
        ("sheet Prices", "what"),
        ("sheet Grün & Co", "0\tla"),
    ]
    assert text.note is None


def test_hidden_sheets_are_noted_and_not_read() -> None:
    data = workbook({"A": [["seen"]], "B": [["secret"]], "C": [["secret"]]}, hidden=("B", "C"))
    text = parse(data, "a.xlsx")[1]
    assert (text.text, text.note) == ("seen", "2 hidden sheets not read")


def test_the_format_before_2007() -> None:
    text = parse(XLS, "a")[1]
    assert (text.text, text.sections) == ("words\t3\n\t2.5", [(0, "sheet Old")])
    assert text.note == "1 hidden sheet not read"
    with pytest.raises(DocumentError, match="broken"):
        parse(XLS[:1500], "a.xls")


def test_an_empty_workbook_says_so() -> None:
    text = parse(workbook({"A": []}), "a.xlsx")[1]
    assert (text.text, text.note) == ("", "no visible text")


def test_a_sheet_of_many_rows_comes_whole() -> None:
    rows: list[list[object]] = [[f"row {number}", number, number / 4] for number in range(20_000)]
    lines = parse(workbook({"A": rows}), "a.xlsx")[1].text.split("\n")
    assert lines == [f"row {n}\t{n}\t{n // 4 if n % 4 == 0 else n / 4}" for n in range(20_000)]


def test_the_last_cell_of_a_sheet_takes_no_memory() -> None:
    far = '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="XFD1048576"><v>2</v></c></row>'
    with pytest.raises(DocumentError, match=rf"too sparse .* 1048576 rows and 16384 columns.*{MAX_CELLS}"):
        parse(with_rows(far), "a.xlsx")
    # Rows without numbers: the cells' own are counted.
    with pytest.raises(DocumentError, match="too sparse"):
        parse(with_rows(re.sub(r'<row r="\d+">', "<row>", far)), "a.xlsx")
    narrow = '<row r="1"><c r="A1"><v>1</v></c></row><row r="1048576"><c r="B1048576"><v>2</v></c></row>'
    assert parse(with_rows(narrow), "a.xlsx")[1].text == "1\n\t2"


@pytest.mark.parametrize(
    ("rows", "start", "reason"),
    [
        ('<row r="1"><c r="ZZZZZ99999999999999"><v>1</v></c></row>', "", "beyond the last"),
        ('<row r="9999999"><c r="A9999999"><v>1</v></c></row>', "", "beyond the last"),
        ('<row r="1"><c r="A1"><v>1</c></row>', "", "broken workbook"),
        ('<row r="1"><c r="A1" t="s"><v>99</v></c></row>', "", "broken workbook"),
        (
            '<row r="1"><c r="A1" t="inlineStr"><is><t>&a;</t></is></c></row>',
            "<!DOCTYPE worksheet [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>",
            "broken workbook.*entity",
        ),
    ],
)
def test_broken_and_malicious_sheets_are_a_reason(rows: str, start: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse(with_rows(rows, start), "a.xlsx")


def test_one_hundred_thousand_levels_deep() -> None:
    rows = "<row><c t='str'><v>seen</v></c></row>" + "<x>" * 100_000 + "</x>" * 100_000
    assert parse(with_rows(rows), "a.xlsx")[1].text == "seen"
