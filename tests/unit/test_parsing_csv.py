"""CSV: rows stay whole, and nothing in a table makes it fail."""

from __future__ import annotations

import tracemalloc

import pytest

from semantik.parsing import csv, parse
from semantik.parsing.text import Text


def read(text: str) -> Text:
    kind, result = parse(text.encode(), "table.csv")
    assert kind == "csv"
    return result


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(delimiter: str) -> None:
    rows = [["name", "price", "note"], ["nut", "1.50", "two, or three"], ["bolt", "2.00", "a; b | c"]]
    lines = [delimiter.join(f'"{c}"' if not c.isalnum() else c for c in row) for row in rows]
    assert read("\n".join(lines)).text == "\n".join("\t".join(row) for row in rows)


def test_decimal_commas_do_not_cut_cells() -> None:
    assert read("a;b\n1,5;2,5\n3,5;4,5\n").text == "a\tb\n1,5\t2,5\n3,5\t4,5"


def test_a_table_may_name_its_delimiter() -> None:
    assert read("sep=|\na,b|c\n").text == "a,b\tc"


def test_one_column() -> None:
    text = read("one\ntwo words\n")
    assert text.text == "one\ntwo words"
    assert text.sections == [(0, "rows 1 to 2")]


def test_quotes_over_lines_and_doubled() -> None:
    assert (
        read('a,b\n"one\ntwo","say ""hi"""\n"tab\there",x\n').text == 'a\tb\none two\tsay "hi"\ntab here\tx'
    )


def test_empty_rows_and_cells() -> None:
    assert read("a,b,c\n\n,,\n1,,3\n4,,\n").text == "a\tb\tc\n1\t\t3\n4"


@pytest.mark.parametrize("data", [b"", b"\n\n", b",,\n,\n"])
def test_a_table_without_rows_says_so(data: bytes) -> None:
    text = parse(data, "a.csv")[1]
    assert (text.text, text.sections, text.note) == ("", [], "no rows")


def test_sections_name_rows_and_columns() -> None:
    text = read("id,city\n" + "".join(f"{n},town {n}\n" for n in range(250)))
    assert [label for _, label in text.sections] == [
        "rows 1 to 100: id, city",
        "rows 101 to 200: id, city",
        "rows 201 to 251: id, city",
    ]
    assert [text.text[offset:].split("\n")[0] for offset, _ in text.sections] == [
        "id\tcity",
        "99\ttown 99",
        "199\ttown 199",
    ]


def test_a_quote_that_never_closes_costs_no_rows() -> None:
    rows = "".join(f"{n},x\n" for n in range(40_000))
    text = read('a,b\n1,"open\n' + rows)
    assert text.text.startswith('a\tb\n1\t"open\n0\tx\n1\tx\n')
    assert text.text.count("\n") == 40_001


def test_cells_of_any_size_and_content() -> None:
    cell = "word " * 60_000
    assert read(f'a,b\n"{cell}",x\n').text == f"a\tb\n{cell}\tx"
    assert parse(b"a,b\n1,x\x00y\n" + b"1,2\n" * 50, "a.csv")[1].text.startswith("a\tb\n1\tx y\n")
    assert read("a,b\r1,2\r\n3,4").text == "a\tb\n1\t2\n3\t4"


def test_tables_in_old_encodings() -> None:
    table = "город;цена\nКазань;15\nНовгород;20\n"  # noqa: RUF001
    assert parse(table.encode("cp1251"), "a.csv")[1].text == table.replace(";", "\t").strip()


def test_memory_is_a_small_multiple_of_the_table() -> None:
    data = b"1,2\n" * 50_000
    tracemalloc.start()
    csv.parse(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * len(data)
