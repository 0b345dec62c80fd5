"""The device that this process computes on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from semantik.exceptions import SettingsError

if TYPE_CHECKING:
    from semantik.settings import Settings


def environment(settings: Settings) -> None:
    """Set what torch and the tokenizer read when they are first imported."""
    if settings.cuda_visible_devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = settings.cuda_visible_devices
    # No look at a hub, ever: hosts have no internet, and a model is what the inventory pinned.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # A thread that waits for its siblings spins for some 50 microseconds, then sleeps. By default it spins
    # for far longer: where parsers share its core, the sibling that it waits for does not get there, and a
    # third of the work per CPU second was measured. Not to spin at all costs a fifth on idle cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # What oneDNN and its wrapper keep for shapes that they have met: a thousand each, a megabyte apiece.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "128")


def choose(settings: Settings) -> str:
    """Return "cpu" or "cuda".

    Raises SettingsError when a GPU is asked for, by the device or as the slot's, and torch sees none: a slot
    that quietly computed on the CPU would look well and be a hundred times slower.
    """
    import torch

    if settings.device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    of_a_gpu = bool(settings.slot and settings.cuda_visible_devices)
    if settings.device == "auto" and not of_a_gpu:
        return "cpu"
    asked = f"slot {settings.slot} has a GPU" if of_a_gpu else f"SEMANTIK_DEVICE={settings.device}"
    raise SettingsError(
        f"{asked}, but torch {torch.__version__} sees no GPU "
        f"(CUDA_VISIBLE_DEVICES={settings.cuda_visible_devices!r}): is the driver loaded (nvidia-smi), "
        "is this a CUDA build of torch, may this unit open /dev/nvidia*?"
    )
