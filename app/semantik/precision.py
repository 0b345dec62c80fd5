"""The precision that a model is run in: as fast as its device allows, unless that bends the vectors."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semantik import memory, probe
from semantik.exceptions import SettingsError
from semantik.logs import event

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from semantik.model import Model

log = logging.getLogger("semantik.model")

PRECISIONS = ("auto", "float32", "float16", "bfloat16")
#: Least cosine between a text's vector in a reduced precision and in float32. Half precision gives 0.9999 and
#: more where it suits a model; below this, neighbours in a collection change places.
MIN_COSINE = 0.999

#: Lengths (tokens) of the texts that are compared, cut to what the model takes. The first ones share a
#: batch, so that padding is tried too; the longest is alone, with the most positions and the longest sums.
_LENGTHS = {"cuda": (4, 12, 40, 150, 512, 4096), "cpu": (4, 12, 40, 150, 512)}
# For float32 on the CPU beside a GPU that has no room for it: such a model takes seconds per text.
_SHORT_LENGTHS = (4, 12, 40)
# Weights alone are not all: the texts above need some memory too.
_ACTIVATIONS = 1.2


@dataclass(frozen=True)
class Reference:
    """Texts as ids, and what the model makes of them in float32: (n, dim)."""

    texts: list[NDArray[np.int64]]
    vectors: NDArray[np.float32]

    def cosine(self, model: Model) -> float:
        """Return the least cosine between these vectors and those of `model`, nan where one is not finite."""
        return min_cosine(self.vectors, _vectors(model, self.texts))


def min_cosine(left: NDArray[np.floating[Any]], right: NDArray[np.floating[Any]]) -> float:
    """Return the least cosine between rows of (n, dim) and (n, dim), nan where a number is not finite."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(cosines.min())  # a nan among them comes out


def settle(
    open_network: Callable[[str], Any],
    build: Callable[[Any, str, str], Model],
    *,
    wanted: str,
    device: str,
    room: int | None,
) -> Model:
    """Return the model on `device` in the precision `wanted`, or for "auto" in the first that keeps vectors.

    `open_network` loads the weights onto the CPU, "float32" or "stored"; `build` makes a Model of (network,
    precision, device); `room` is the device's memory in bytes, None where it does not matter. Raises
    SettingsError when a precision that was asked for bends the vectors.
    """
    if device == "cpu" and wanted in ("auto", "float32"):
        model = build(open_network("float32"), "float32", device)
        model.unpad()
        return model
    network = open_network("stored")
    stored = _name(network.dtype)
    order = [wanted] if wanted != "auto" else _order(stored)
    reference = None
    if order != ["float32"]:
        reference = _reference(network, build, device=device, room=room, trusted=order[0] == stored)
    cosine = 1.0
    for precision in order:
        network = network or open_network("stored")  # a cast loses what another precision needs
        model = build(place(network, precision, device), precision, device)
        model.unpad()
        if precision == "float32" or reference is None:
            return model
        started = time.monotonic()
        cosine = reference.cosine(model)
        kept = cosine >= MIN_COSINE
        event(
            log, "precision checked" if kept else "precision refused: it bends the vectors",
            level=logging.INFO if kept else logging.WARNING, model=model.name, precision=precision,
            cosine=f"{cosine:.6f}", least=MIN_COSINE, texts=len(reference.texts),
            seconds=time.monotonic() - started,
        )  # fmt: skip
        if kept:
            return model
        del model
        network = None
        gc.collect()  # modules refer to each other; the next copy needs the room
        memory.release(device)
    raise SettingsError(
        f"SEMANTIK_PRECISION={wanted}: in it, this model's vectors have a cosine of {cosine:.4f} to those in "
        f"float32, and at least {MIN_COSINE} is asked for; set SEMANTIK_PRECISION=auto, which takes the "
        "fastest precision that keeps the vectors, or float32"
    )


def place(network: Any, precision: str, device: str) -> Any:
    """Move `network` to `device` with its weights in `precision`, changed in place, and return it.

    Buffers keep their precision: the frequencies of rotary positions are one, and far positions are lost when
    they are rounded. Loading a model in half precision leaves them alone too.
    """
    import torch

    dtype = getattr(torch, precision)
    shrinks = torch.finfo(dtype).bits < torch.finfo(network.dtype).bits
    if not shrinks:  # the copy is made where memory is plenty, or at least needed anyway
        network.to(device)
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return network.to(device)


def _order(stored: str) -> list[str]:
    """Return what to try on a GPU. What was trained in bfloat16 may overflow in float16."""
    import torch

    halves = ["bfloat16", "float16"] if stored == "bfloat16" else ["float16", "bfloat16"]
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        halves.remove("bfloat16")
    return [*halves, "float32"]


def _reference(
    network: Any, build: Callable[[Any, str, str], Model], *, device: str, room: int | None, trusted: bool
) -> Reference | None:
    """Embed texts in float32: on the device where the weights fit, else on the CPU.

    Returns None where they do not fit and the model is `trusted` to be run as it is stored: its authors chose
    that precision, and a copy twice as large may not fit into the host's memory either.
    """
    needed = 4 * sum(parameter.numel() for parameter in network.parameters())
    lengths = _LENGTHS[device]
    if room is not None and _ACTIVATIONS * needed > room:
        if trusted:
            event(
                log, "precision not checked: float32 does not fit", level=logging.WARNING,
                precision=_name(network.dtype), needed_gb=needed / 2**30, room_gb=room / 2**30,
            )  # fmt: skip
            return None
        device, lengths = "cpu", _SHORT_LENGTHS
    model = build(place(network, "float32", device), "float32", device)
    texts = probe.texts(model, sorted({min(length, model.max_tokens) for length in lengths}))
    return Reference(texts, _vectors(model, texts))


def _vectors(model: Model, texts: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    return np.concatenate([model.embed_ids(texts[:-1]), model.embed_ids(texts[-1:])])


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
