"""infinity-emb's engine in this process: its queue and its batching without the HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from semantik_bench.workers.protocol import Answer, serve, texts, timed

# EngineArgs.batch_size where it is not given.
_DEFAULT_BATCH = 32


def load(settings: Answer) -> Callable[[Answer], tuple[Any, Answer]]:
    """Load the model; a request has profile, limit and batch_size, which an engine of its own is made for."""
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs
    from infinity_emb.transformer.embedder.sentence_transformer import SentenceTransformerPatched

    torch.set_num_threads(settings["threads"])
    loop = asyncio.new_event_loop()
    padded = 0
    core = SentenceTransformerPatched.encode_core

    def counted(self: Any, features: Any) -> Any:
        nonlocal padded
        padded += int(features["input_ids"].numel())
        return core(self, features)

    SentenceTransformerPatched.encode_core = counted
    engines: dict[int, Any] = {}

    async def engine(batch_size: int) -> Any:
        if batch_size not in engines:
            for old in engines.values():
                await old.astop()
            engines.clear()
            arguments = EngineArgs(
                model_name_or_path=settings["model"], engine="torch", device="cpu", dtype="float32",
                batch_size=batch_size, bettertransformer=False, model_warmup=False,
            )  # fmt: skip
            engines[batch_size] = AsyncEmbeddingEngine.from_args(arguments)
            await engines[batch_size].astart()
        return engines[batch_size]

    loop.run_until_complete(engine(_DEFAULT_BATCH))

    def run(request: Answer) -> tuple[Any, Answer]:
        nonlocal padded
        some = texts(settings["folder"], request["profile"], request.get("limit"))
        ready = loop.run_until_complete(engine(request.get("batch_size") or _DEFAULT_BATCH))
        padded = 0
        (vectors, _), facts = timed(lambda: loop.run_until_complete(ready.embed(sentences=some)))
        return vectors, {**facts, "model_tokens": padded}

    return run


if __name__ == "__main__":
    serve(load)
