"""Run `chunking.measure` on the documents: the chunker's rate against the bare tokenizer's, and equal ids."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Read {documents, environment, model} from standard input, print what was measured."""
    from semantik.settings import load
    from semantik_bench import chunking
    from semantik_bench.prepare import parsed

    request = json.load(sys.stdin)
    settings = load({**os.environ, **request["environment"]})
    texts = [
        (document.text, document.sections) for _, document in parsed(Path(request["documents"]), settings)
    ]
    print(json.dumps(chunking.measure(texts, request["model"])))


if __name__ == "__main__":
    main()
