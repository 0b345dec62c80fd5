"""Documents to chunks, once, with this engine's own parser and chunker: what every contender is given."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Profile: (tokens per chunk, overlap); None for the engine's default.
PROFILES: dict[str, tuple[int | None, int | None]] = {"long": (None, None), "short": (50, 0)}


def parsed(documents: Path, settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path relative to the folder, Parsed) of every document, in the order of the paths."""
    from semantik.parser import ParserClient

    with ParserClient(settings) as client:
        for path in sorted(path for path in documents.rglob("*") if path.is_file()):
            fd = os.open(path, os.O_RDONLY)
            try:
                yield str(path.relative_to(documents)), client.parse(fd, str(path), None)
            finally:
                os.close(fd)


def write(documents: Path, folder: Path, environment: dict[str, str], short_tokens: int) -> dict[str, Any]:
    """Write the chunks of both profiles into `folder` and return what there is.

    PROFILE.jsonl has a line per chunk (document, ordinal, text), PROFILE.npz the ids: one int64 array behind
    the other, and their lengths. The short profile ends at the document in which it passes `short_tokens`.
    """
    from semantik.chunking import ChunkCounts, Chunker
    from semantik.model import load_model
    from semantik.settings import load

    settings = load(environment)
    model = load_model(settings)
    texts = list(parsed(documents, settings))
    facts: dict[str, Any] = {
        "documents": len(texts),
        "kinds": {
            kind: sum(one.kind == kind for _, one in texts) for kind in sorted({t.kind for _, t in texts})
        },
        "bytes": sum(one.size for _, one in texts),
        "characters": sum(len(one.text) for _, one in texts),
        "dim": model.dim,
        "profiles": {},
    }
    for profile, (tokens, overlap) in PROFILES.items():
        chunker = Chunker(
            model,
            chunk_tokens=settings.chunk_tokens if tokens is None else tokens,
            chunk_overlap=settings.chunk_overlap if overlap is None else overlap,
        )
        lengths: list[int] = []
        ids: list[np.ndarray] = []
        with (folder / f"{profile}.jsonl").open("w", encoding="utf-8") as lines:
            for name, document in texts:
                if profile == "short" and sum(lengths) > short_tokens:
                    break
                for chunk in chunker.cut(document.text, document.sections, ChunkCounts()):
                    line = {"document": name, "ordinal": chunk.ordinal, "text": chunk.text}
                    lines.write(json.dumps(line) + "\n")
                    ids.append(chunk.ids)
                    lengths.append(len(chunk.ids))
        np.savez(folder / f"{profile}.npz", ids=np.concatenate(ids), lengths=np.array(lengths))
        facts["profiles"][profile] = {
            "chunks": len(lengths),
            "tokens": sum(lengths),
            "median_tokens": int(np.median(lengths)),
        }
    return facts


def main() -> None:
    """Read {documents, folder, environment, short_tokens} from standard input, print the facts."""
    request = json.load(sys.stdin)
    environment = {**os.environ, **request["environment"]}
    facts = write(Path(request["documents"]), Path(request["folder"]), environment, request["short_tokens"])
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
