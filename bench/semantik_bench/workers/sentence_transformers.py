"""sentence-transformers' `encode`, with torch or one of its other backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semantik_bench.workers.protocol import Answer, serve, texts, timed


def load(settings: Answer) -> Callable[[Answer], tuple[Any, Answer]]:
    """Load the model; a request has profile, limit and batch_size (absent: what encode does by default)."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(settings["threads"])
    network = SentenceTransformer(
        settings["model"], device="cpu", local_files_only=True, **_options(settings)
    )
    padded = 0
    forward = network.forward

    def counted(features: Any, *more: Any, **named: Any) -> Any:
        nonlocal padded
        padded += int(features["input_ids"].numel())
        return forward(features, *more, **named)

    network.forward = counted

    def run(request: Answer) -> tuple[Any, Answer]:
        nonlocal padded
        padded = 0
        some = texts(settings["folder"], request["profile"], request.get("limit"))
        sized = {"batch_size": request["batch_size"]} if request.get("batch_size") else {}
        vectors, facts = timed(lambda: network.encode(some, show_progress_bar=False, **sized))
        return vectors, {**facts, "model_tokens": padded, "precision": _precision(network, settings)}

    return run


def _options(settings: Answer) -> Answer:
    """Return the arguments of SentenceTransformer for a backend, with as many threads as all others have."""
    backend, threads = settings["backend"], settings["threads"]
    if backend == "torch":
        return {}
    if backend == "openvino":
        config = {"INFERENCE_NUM_THREADS": str(threads)}
        # OpenVINO computes in bfloat16 on its own where the processor has AMX: equal precision must be asked.
        if settings["precision"] == "f32":
            config["INFERENCE_PRECISION_HINT"] = "f32"
        return {"backend": backend, "model_kwargs": {"ov_config": config}}
    import onnxruntime

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = threads
    session.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return {
        "backend": backend,
        "model_kwargs": {"provider": "CPUExecutionProvider", "session_options": session},
    }


def _precision(network: Any, settings: Answer) -> str:
    """Return the precision that is computed in; OpenVINO says what it chose once the model is compiled."""
    if settings["backend"] != "openvino":
        return "f32"
    chosen = network[0].auto_model.request.get_property("INFERENCE_PRECISION_HINT")
    return str(chosen.get_type_name() if hasattr(chosen, "get_type_name") else chosen)


if __name__ == "__main__":
    serve(load)
