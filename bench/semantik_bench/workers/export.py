"""Write a model in a backend's own format, with sentence-transformers: `export.py BACKEND MODEL FOLDER`."""

from __future__ import annotations

import sys


def main() -> None:
    """Export the model from its directory; nothing is fetched."""
    from sentence_transformers import SentenceTransformer

    backend, model, folder = sys.argv[1:]
    network = SentenceTransformer(model, backend=backend, device="cpu", local_files_only=True)
    network.save_pretrained(folder)


if __name__ == "__main__":
    main()
