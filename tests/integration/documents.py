"""Documents to embed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WORDS = """the river carried grain past towers while merchants counted silver under lanterns of green glass
""".split()  # noqa: SIM905 (a sentence reads better than a list)


def write(folder: Path, count: int, words: int = 120, seed: int = 0) -> None:
    """Write `count` text documents of `words` words each."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    for at in range(count):
        text = " ".join(random.choice(WORDS, words))
        (folder / f"document-{at:04d}.txt").write_text(f"Document {seed} {at}. {text}.\n", encoding="utf-8")
