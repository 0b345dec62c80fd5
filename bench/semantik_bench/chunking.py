"""The rate of tokenize-and-chunk against the bare tokenizer, and whether chunks are what they say.

    python -m semantik_bench.chunking MODEL FOLDER...

reads the text files of the folders, cuts them and prints what came of it as JSON. One thread, processor time
of this process; a round of each takes turns, and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

#: Characters per call of the bare tokenizer: its fastest.
WINDOW = 65_536
#: Tokens per chunk, overlap: what is measured besides the default, which the headline is about.
DEFAULT = (256, 32)
SHAPES = (DEFAULT, (256, 0), (50, 0), (50, 8))
ROUNDS = 5
# Bytes that a round reads at least, so that it is long enough to be timed.
_ROUND_BYTES = 1_500_000

Texts = Sequence[tuple[str, Sequence[tuple[int, str]]]]


def measure(texts: Texts, model_dir: str) -> dict[str, Any]:
    """Return rates in MB/s of UTF-8 and their ratio, and the chunks whose ids differ with the reasons.

    `texts` are (text, sections) pairs. `different` counts chunks whose ids are not those of the chunk's text
    alone and for which no reason in `explained` was counted: 0 is expected.
    """
    # Read at the first batch, for the bare tokenizer as for the chunker.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from semantik.chunking import ChunkCounts, Chunker

    model: Any = _model(model_dir)
    limits = [shape for shape in SHAPES if shape[0] <= model.max_tokens]
    chunkers = {shape: Chunker(model, chunk_tokens=shape[0], chunk_overlap=shape[1]) for shape in limits}
    size = sum(len(text.encode()) for text, _ in texts)
    times: dict[Any, list[float]] = {shape: [] for shape in ("bare", *chunkers)}
    repeats = max(1, -(-_ROUND_BYTES // max(1, size)))
    for _ in range(ROUNDS):
        times["bare"].append(_seconds(lambda: _bare(model.tokenizer, texts), repeats))
        for shape, chunker in chunkers.items():
            times[shape].append(_seconds(lambda chunker=chunker: _cut(chunker, texts), repeats))
    ratios = {
        shape: statistics.median(bare / own for bare, own in zip(times["bare"], times[shape], strict=True))
        for shape in chunkers
    }
    headline = next(iter(chunkers))
    counts = ChunkCounts()
    reasons: Counter[str] = Counter()
    chunks = equal = different = 0
    for text, sections in texts:
        one = ChunkCounts()
        parted = 0
        for chunk in chunkers[headline].cut(text, sections, one):
            chunks += 1
            if model.tokenizer.encode(chunk.text).ids == chunk.ids.tolist():
                equal += 1
            elif one.parted_chunks > parted:
                reasons["a word above the tokenizer's limit is read in parts, not as one unknown token"] += 1
            else:
                different += 1
            parted = one.parted_chunks
        for name, value in vars(one).items():
            setattr(counts, name, getattr(counts, name) + value)
    return {
        "chunk_vs_tokenizer": round(ratios[headline], 3),
        "ratios": {f"{tokens}/{overlap}": round(ratio, 3) for (tokens, overlap), ratio in ratios.items()},
        "tokenizer_mb_per_second": round(size * repeats / 1e6 / statistics.median(times["bare"]), 2),
        "chunker_mb_per_second": round(size * repeats / 1e6 / statistics.median(times[headline]), 2),
        "texts": len(texts),
        "bytes": size,
        "chunks": chunks,
        "equal": equal,
        "different": different,
        "explained": dict(reasons),
        "truncated_tokens": counts.truncated_tokens,
        "unknown_tokens": counts.unknown_tokens,
        "unknown_characters": counts.unknown_characters,
        "parted_words": counts.parted_words,
        "split_words": counts.split_words,
        "edges_read_again": counts.edges,
    }


def _model(model_dir: str) -> SimpleNamespace:
    """Return what the chunker needs of a model, without its weights."""
    from tokenizers import Tokenizer

    from semantik.description import describe_model
    from semantik.prompts import wrapping

    tokenizer = Tokenizer.from_file(str(Path(model_dir) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prefix, suffix = wrapping(tokenizer, "")
    limit = describe_model(Path(model_dir)).max_tokens
    return SimpleNamespace(
        name=model_dir, tokenizer=tokenizer, prefix=prefix, suffix=suffix, max_tokens=limit
    )


def _seconds(work: Any, repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        work()
    return time.process_time() - started


def _bare(tokenizer: Any, texts: Texts) -> None:
    for text, _ in texts:
        for start in range(0, len(text), WINDOW):
            tokenizer.encode_batch([text[start : start + WINDOW]], add_special_tokens=False)


def _cut(chunker: Any, texts: Texts) -> None:
    from semantik.chunking import ChunkCounts

    for text, sections in texts:
        for _ in chunker.cut(text, sections, ChunkCounts()):
            pass


def main(arguments: Sequence[str]) -> int:
    """Measure with the text files below the folders given behind the model's directory."""
    if len(arguments) < 2:
        print("usage: python -m semantik_bench.chunking MODEL FOLDER...", file=sys.stderr)
        return 2
    texts = [
        (path.read_text(encoding="utf-8", errors="replace"), ())
        for folder in arguments[1:]
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.suffix in (".txt", ".md", ".html", ".py", ".rst")
    ]
    print(json.dumps(measure(texts, arguments[0]), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
