"""PPTX: slides in the order of the show, with their titles, tables and notes; written by python-pptx."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import pptx
import pytest
from pptx.util import Inches

from semantik.exceptions import DocumentError
from semantik.parsing import parse


def saved(presentation: pptx.presentation.Presentation) -> bytes:
    buffer = io.BytesIO()
    presentation.save(buffer)
    return buffer.getvalue()


def changed(data: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """Rewrite each member; None leaves it out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def deck() -> bytes:
    presentation = pptx.Presentation()
    first = presentation.slides.add_slide(presentation.slide_layouts[0])
    first.shapes.title.text = "Opening"
    first.placeholders[1].text = "by the author"
    second = presentation.slides.add_slide(presentation.slide_layouts[5])
    # Drawn before the title, read after it.
    box = second.shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame
    box.text = "Points:\vin two lines"
    box.add_paragraph().text = "the last"
    second.shapes._spTree.insert(2, second.shapes[-1]._element)
    second.shapes.title.text = "Agenda"
    table = second.shapes.add_table(2, 2, 0, 0, Inches(1), Inches(1)).table
    for index, words in enumerate(("k", "v", "one", "two")):
        table.cell(index // 2, index % 2).text = words
    group = second.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame.text = "grouped"
    second.notes_slide.notes_text_frame.text = "Say it slowly."
    presentation.slides.add_slide(presentation.slide_layouts[6])
    third = presentation.slides.add_slide(presentation.slide_layouts[6])
    third.shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame.text = "No title here"
    third._element.set("show", "0")
    return saved(presentation)


def test_slides_are_sections(deck: bytes) -> None:
    kind, text = parse(deck, "deck")
    assert kind == "pptx"
    assert text.text == (
        "Opening\n\nby the author\n\nAgenda\n\nPoints:\nin two lines\n\nthe last\n\nk\tv\none\ttwo\n\n"
        "grouped\n\nSay it slowly.\n\nNo title here"
    )
    assert [(label, text.text[offset:].splitlines()[0]) for offset, label in text.sections] == [
        ("slide 1: Opening", "Opening"),
        ("slide 2: Agenda", "Agenda"),
        ("slide 2: notes", "Say it slowly."),
        ("slide 4 (hidden)", "No title here"),
    ]
    assert text.note is None


def test_the_order_is_that_of_the_show(deck: bytes) -> None:
    presentation = pptx.Presentation(io.BytesIO(deck))
    slides = presentation.slides._sldIdLst
    slides.append(slides[0])
    labels = [label for _, label in parse(saved(presentation), "a.pptx")[1].sections]
    assert labels == ["slide 1: Agenda", "slide 1: notes", "slide 3 (hidden)", "slide 4: Opening"]


def test_footers_and_numbers_are_not_text(deck: bytes) -> None:
    shape = (
        b'<p:sp><p:nvSpPr><p:cNvPr id="90" name="x"/><p:cNvSpPr/><p:nvPr><p:ph type="%b"/></p:nvPr>'
        b"</p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/><a:p><a:r><a:t>%b</a:t></a:r></a:p></p:txBody></p:sp></p:spTree>"
    )

    def add(name: str, content: bytes) -> bytes:
        if name != "ppt/slides/slide1.xml":
            return content
        for kind, words in ((b"ftr", b"Confidential"), (b"sldNum", b"17"), (b"body", b"Added")):
            content = content.replace(b"</p:spTree>", shape % (kind, words))
        return content

    text = parse(changed(deck, add), "a.pptx")[1].text
    assert text.startswith("Opening\n\nby the author\n\nAdded\n\nAgenda")


def test_missing_slides_are_counted(deck: bytes) -> None:
    text = parse(changed(deck, lambda name, data: None if name.endswith("/slide1.xml") else data), "a.pptx")[
        1
    ]
    assert text.text.startswith("Agenda")
    assert text.note == "1 of 4 slides are missing in the file"
    with pytest.raises(DocumentError, match="all its slides are missing"):
        parse(changed(deck, lambda name, data: None if "slides/slide" in name else data), "a.pptx")


def test_a_broken_slide_is_a_reason(deck: bytes) -> None:
    cut = changed(deck, lambda name, data: data[:-40] if name.endswith("/slide2.xml") else data)
    with pytest.raises(DocumentError, match=r"broken XML in ppt/slides/slide2\.xml"):
        parse(cut, "a.pptx")


def test_a_deck_without_words_says_so() -> None:
    text = parse(saved(pptx.Presentation()), "a.pptx")[1]
    assert (text.text, text.note) == ("", "no visible text")
