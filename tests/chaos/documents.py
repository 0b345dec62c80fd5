"""The documents of a run: real text of Debian's manuals, cut to one size, always the same."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from chaos.kinds import ChaosError

#: What poison.py kills its process for.
POISON = "strychnine"
#: Characters of a document of the long jobs, and of those that go with a fault.
SIZE, SMALL = 3_000, 1_500
#: Documents by folder, at scale 1. 3,000 characters are some 750 tokens, a third of a second of one CPU core.
FOLDERS = {"long": 300, "short": 100, "side": 12}


class _Text(HTMLParser):
    """Takes the text out of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")
        if tag in ("p", "h1", "h2", "h3", "li", "dt", "dd", "pre", "tr"):
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


@dataclass(frozen=True)
class Documents:
    """What was written: file names by folder, and the identity of all of it together."""

    root: Path
    folders: dict[str, tuple[str, ...]]
    digest: str


def texts(corpus: Path) -> Iterator[str]:
    """Yield the texts of the corpus, paragraphs parted by blank lines."""
    for path in sorted(corpus.rglob("*")):
        if path.suffix in (".html", ".txt"):
            content = path.read_text(encoding="utf-8", errors="replace")
            if path.suffix == ".html":
                page = _Text()
                page.feed(content)
                content = "".join(page.parts)
            blocks = (" ".join(block.split()) for block in content.split("\n\n"))
            yield "\n\n".join(block for block in blocks if block)


def cut(text: str, size: int) -> list[str]:
    """Cut a text at paragraphs into pieces of at least `size` characters; the rest is left out."""
    pieces, piece, length = [], [], 0
    for paragraph in text.split("\n\n"):
        piece.append(paragraph)
        length += len(paragraph)
        if length >= size:
            pieces.append("\n\n".join(piece) + "\n")
            piece, length = [], 0
    return pieces


def provide(corpus: Path, root: Path, scale: float) -> Documents:
    """Write the folders below `root`, which the hosts see as a share; what is there already is kept."""
    rng = random.Random("semantik chaos documents")
    large = [piece for text in texts(corpus) for piece in cut(text, SIZE) if len(piece) < 3 * SIZE]
    rng.shuffle(large)
    wanted = {folder: max(4, round(count * scale)) for folder, count in FOLDERS.items() if folder != "side"}
    wanted["side"] = FOLDERS["side"]
    contents: dict[str, list[str]] = {}
    for folder, count in wanted.items():
        if len(large) < count:
            raise ChaosError(
                f"the corpus has too few texts for {count} documents in {folder}: take a smaller --scale"
            )
        # Numbered, so that no two are alike.
        contents[folder] = [f"Document {n} of {folder}.\n\n{large.pop()}" for n in range(count)]
    contents["side"] = [content[:SMALL] + "\n" for content in contents["side"]]
    folders = {folder: _write(root / folder, files) for folder, files in contents.items()}
    poison = f"A word on rat poison. {POISON.capitalize()} tastes bitter.\n"
    folders["poison"] = _write(root / "poison", [*contents["side"], poison])
    digest = hashlib.sha256(repr(contents).encode()).hexdigest()[:12]
    return Documents(root, folders, digest)


def _write(folder: Path, contents: Sequence[str]) -> tuple[str, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    names = [f"{n:04}.txt" for n in range(len(contents))]
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()
    for name, content in zip(names, contents, strict=True):
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
        path.chmod(0o644)
    return tuple(names)
