"""This engine's forward path: the chunks' ids as they are, packed into batches as the engine packs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from semantik_bench.workers.protocol import Answer, ids, serve, timed


class _Ready(NamedTuple):
    """A chunk as far as the engine's packing looks at it."""

    ids: np.ndarray


def load(settings: Answer) -> Callable[[Answer], tuple[Any, Answer]]:
    """Load the model as a worker of the cluster does; a request has profile and limit."""
    from semantik.model import load_model
    from semantik.settings import load as load_settings

    model = load_model(load_settings(settings["environment"]))

    def run(request: Answer) -> tuple[Any, Answer]:
        some = ids(settings["folder"], request["profile"], request.get("limit"))
        return _run(model, some)

    return run


def _run(model: Any, some: list[np.ndarray]) -> tuple[Any, Answer]:
    from semantik import engine

    pack = engine._batches if model.pads else engine._flat_batches
    vectors = np.empty((len(some), model.dim), dtype=np.float32)
    counts = {"model_tokens": 0, "batches": 0}
    under_way: list[tuple[list[int], Any]] = []

    def collect() -> None:
        rows, pending = under_way.pop(0)
        vectors[rows] = pending.result()

    def work() -> None:
        pool: list[tuple[int, _Ready]] = []
        pooled = 0
        for at, own in enumerate(some):
            pool.append((at, _Ready(own)))
            pooled += len(own)
            more = at + 1 < len(some)
            if more and pooled < engine._POOL_BATCHES * model.token_budget:
                continue
            pool.sort(key=lambda entry: len(entry[1].ids))
            for batch in pack(pool, model.token_budget, keep_rest=more):
                rows = [row for row, _ in batch]
                under_way.append((rows, model.start([one.ids for _, one in batch])))
                counts["batches"] += 1
                lengths = [len(one.ids) for _, one in batch]
                counts["model_tokens"] += len(batch) * max(lengths) if model.pads else sum(lengths)
                while len(under_way) >= model.depth:
                    collect()
            pooled = sum(len(one.ids) for _, one in pool)
        while under_way:
            collect()

    _, facts = timed(work)
    return vectors, {**facts, **counts, "precision": model.precision, "token_budget": model.token_budget}


if __name__ == "__main__":
    serve(load)
