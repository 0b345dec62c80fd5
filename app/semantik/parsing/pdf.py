"""PDF: the text layer, page by page; each page is a section."""

from __future__ import annotations

import re

import pypdfium2

from semantik.exceptions import DocumentError
from semantik.parsing.text import Text

# PDFium marks a hyphen that only breaks a line with U+0002 (older) or U+FFFE (newer); the word is whole
# without it.
_SOFT_HYPHEN = re.compile("[\x02\ufffe](?:\r?\n)?")


def parse(data: bytes) -> Text:
    """Return the pages' texts with a blank line between pages and a section "page N" for each that has text.

    Raises DocumentError when the file is encrypted, broken, or holds no text (scans).
    """
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise DocumentError("encrypted PDF: a password is needed to open it") from error
        raise DocumentError(f"broken PDF: {error}") from error
    try:
        return _pages(document)
    finally:
        document.close()


def _pages(document: pypdfium2.PdfDocument) -> Text:
    parts: list[str] = []
    sections: list[tuple[int, str]] = []
    length = 0
    broken: list[int] = []
    scanned: list[int] = []
    for index in range(len(document)):
        try:
            words, images = _page(document, index)
        except pypdfium2.PdfiumError:
            broken.append(index + 1)
            continue
        if not words:
            if images:
                scanned.append(index + 1)
            continue
        if parts:
            parts.append("\n\n")
            length += 2
        sections.append((length, f"page {index + 1}"))
        parts.append(words)
        length += len(words)
    if not parts:
        reason = f"no page can be read (page {broken[0]} first)" if broken else "no text found"
        raise DocumentError(f"{reason} in {len(document)} pages (scanned pages need OCR)")
    notes = [
        f"{len(pages)} page{'s' if len(pages) > 1 else ''} {what}, page {pages[0]} first"
        for pages, what in ((broken, "cannot be read"), (scanned, "without text (scans need OCR)"))
        if pages
    ]
    return Text("".join(parts), sections, "; ".join(notes) or None)


def _page(document: pypdfium2.PdfDocument, index: int) -> tuple[str, bool]:
    """Return the text of a page and, where it has none, whether it has an image."""
    # Closed one by one: a book's pages held together take hundreds of megabytes.
    page = document[index]
    try:
        layer = page.get_textpage()
        try:
            words: str = layer.get_text_bounded()
        finally:
            layer.close()
        words = _SOFT_HYPHEN.sub("", words).replace("\r\n", "\n").replace("\r", "\n").strip()
        images = not words and any(page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE]))
    finally:
        page.close()
    return words, images
