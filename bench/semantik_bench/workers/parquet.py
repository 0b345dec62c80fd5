"""This engine from disk to a Parquet file: what `semantik embed` does, but for loading the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from semantik_bench.workers.protocol import Answer, in_order, serve, timed


class _Silent:
    """A view that shows nothing."""

    def note(self, text: str) -> None:
        pass

    def show(self, progress: Any) -> None:
        pass


def load(settings: Answer) -> Callable[[Answer], tuple[Any, Answer]]:
    """Load the model once; each run lists, parses, embeds, writes and syncs the documents anew."""
    from semantik import local, parts
    from semantik.model import load_model

    own = local.settings_for({**os.environ, **settings["environment"]})
    model = load_model(own)
    # All rows are timed with a model that is loaded.
    parts.load_model = lambda _: model
    output = Path(settings["output"])

    def run(request: Answer) -> tuple[Any, Answer]:
        output.unlink(missing_ok=True)
        asked = parts.Request(settings["documents"], output, own, force=True, restart=True)
        summary, facts = timed(lambda: local.embed(asked, _Silent(), lambda: False))
        facts |= {
            "tokens": summary.counts.tokens,
            "engine_seconds": summary.seconds,
            "waits": summary.waits,
            "failed": summary.counts.failed,
            "bytes": output.stat().st_size,
        }
        return _vectors(output, settings, request["profile"]), facts

    return run


def _vectors(output: Path, settings: Answer, profile: str) -> np.ndarray:
    import pyarrow.parquet as pq

    table = pq.read_table(output, columns=["document", "ordinal", "embedding"])
    keys = zip(table["document"].to_pylist(), table["ordinal"].to_pylist(), strict=True)
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return in_order(settings, profile, list(keys), flat.reshape(table.num_rows, -1))


if __name__ == "__main__":
    serve(load)
