"""fastembed on onnxruntime, with this model as a custom one from a local ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semantik_bench.workers.protocol import Answer, serve, texts, timed


def load(settings: Answer) -> Callable[[Answer], tuple[Any, Answer]]:
    """Load the model; a request has profile, limit and batch_size. fastembed does not sort by length."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="local/all-MiniLM-L6-v2",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="local/all-MiniLM-L6-v2"),
        dim=settings["dim"],
        model_file="onnx/model.onnx",
    )
    network = TextEmbedding(
        "local/all-MiniLM-L6-v2", specific_model_path=settings["model"], threads=settings["threads"]
    )
    padded = 0
    inner = network.model
    run_model = inner._run_model

    def counted(onnx_input: Any, *more: Any, **named: Any) -> Any:
        nonlocal padded
        padded += int(onnx_input["input_ids"].size)
        return run_model(onnx_input, *more, **named)

    inner._run_model = counted

    def run(request: Answer) -> tuple[Any, Answer]:
        nonlocal padded
        padded = 0
        some = texts(settings["folder"], request["profile"], request.get("limit"))
        sized = {"batch_size": request["batch_size"]} if request.get("batch_size") else {}
        vectors, facts = timed(lambda: list(network.embed(some, **sized)))
        return vectors, {**facts, "model_tokens": padded}

    return run


if __name__ == "__main__":
    serve(load)
