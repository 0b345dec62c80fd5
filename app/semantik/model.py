"""The embedding model: loaded from a sentence-transformers directory, run on token ids that the engine
packed.

torch and sentence_transformers are imported inside functions only: a process that manages others must never
import them (even asking whether CUDA is there breaks its children). `python -m semantik.model DIR` describes
a directory without them.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semantik import device as device_module
from semantik import memory, precision
from semantik.description import ModelDescription, describe_model, main
from semantik.exceptions import DeviceFull, SettingsError
from semantik.logs import event
from semantik.prompts import bare_tokenizer, document_prompt, wrapping
from semantik.staging import DEPTH, STREAMS, Pending, Staging, staging

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from semantik.forward import Forward
    from semantik.settings import Settings

__all__ = ["Model", "ModelDescription", "Pending", "describe_model", "load_model", "main"]

log = logging.getLogger("semantik.model")

#: Tokens per batch where nothing was set or measured. A CPU is fastest while a batch's activations stay in
#: its caches; a GPU wants work for all its multiprocessors at once.
TOKEN_BUDGETS = {"cpu": 2_048, "cuda": 65_536}
#: Batches in a row that went well before a token budget that out-of-memory halved is doubled again.
CALM_BATCHES = 256


class Model:
    """A loaded model. One process, one device, one caller: calls do not overlap, batches in flight do."""

    def __init__(
        self,
        network: Any,
        description: ModelDescription,
        *,
        name: str,
        revision: str,
        device: str,
        token_budget: int,
        precision: str = "float32",
    ) -> None:
        self.name = name
        self.revision = revision
        self.dim = description.dim
        self.max_tokens = description.max_tokens
        self.device = device
        self.precision = precision
        self.depth = DEPTH[device]
        #: Batches that were split because the device had no memory for them.
        self.oom_splits = 0
        self.allow(token_budget)
        self._network = network
        own = network.tokenizer
        self._pad_id = int(own.pad_token_id or 0)
        self._pad_left = own.padding_side == "left"
        self.tokenizer = bare_tokenizer(own)
        prompt = document_prompt(network)
        #: ids before and after a document's own, document prompt included
        self.prefix, self.suffix = wrapping(self.tokenizer, prompt)
        # Models that leave the prompt out of pooling need its length.
        self._prompt_length = len(self.prefix) if prompt else 0
        self._forward: Forward | None = None
        self._staging = staging(device)
        self._turns = cycle(self._staging)
        self._streams: ThreadPoolExecutor | None = None

    def allow(self, token_budget: int) -> None:
        """Set the tokens per batch; out-of-memory lowers it for a while, and never raises it above this."""
        self.token_budget = self._full_budget = token_budget
        self._calm = 0

    def unpad(self) -> None:
        """Run batches without padding from now on, where this network and device can. Changes the network."""
        from semantik.forward import unpadded

        self._forward = unpadded(self._network, self.device, prompt_length=self._prompt_length)

    def share(self, threads: int) -> None:
        """On a CPU, compute several batches at a time from now on, of all `threads` together."""
        import torch

        count = min(threads, STREAMS)
        if self.device != "cpu" or count < 2:
            return
        each = threads // count
        torch.set_num_threads(each)
        self._streams = ThreadPoolExecutor(
            count, "forward", initializer=torch.set_num_threads, initargs=(each,)
        )
        self.depth = count + 1  # one waits, so that no thread does

    @property
    def pads(self) -> bool:
        """Whether a batch is computed as wide as its longest text."""
        return self._forward is None

    def start(self, batch: Sequence[NDArray[np.integer[Any]]]) -> Pending:
        """Begin to embed a batch and return without waiting for the device (a CPU is its own device).

        An item is the ids of one text, special tokens included. Where the device has no memory for the whole
        batch, it is halved until it has. Raises DeviceFull when it has none for a single text.
        """
        if self._streams is not None:
            under_way = self._streams.submit(self.launch, batch)
            return Pending(lambda: under_way.result().result())
        try:
            pending = self.launch(batch)
        except RuntimeError as error:
            if not memory.ran_out(error):
                raise
            reason = str(error).partition("\n")[0]
        else:
            self._went_well()
            return pending
        # Not in the handler: there the traceback still holds the tensors of the pass that failed.
        return self._in_less_memory(batch, reason)

    def embed_ids(self, batch: Sequence[NDArray[np.integer[Any]]]) -> NDArray[np.float32]:
        """Return one vector per item: float32 (n, dim), in the order given. Raises DeviceFull as start()."""
        return self.start(batch).result()

    def embed_question(self, text: str) -> NDArray[np.float32]:
        """Return the vector of a question: float32 (dim,), with the model's query prompt where it has one."""
        vector = self._network.encode_query(text, convert_to_tensor=True, show_progress_bar=False)
        result: NDArray[np.float32] = vector.float().cpu().numpy()
        return result

    def warm_up(self) -> None:
        """Run one batch, so that the first document does not pay for kernels and allocations."""
        self.embed_ids([np.concatenate((self.prefix, self.suffix))])

    def launch(self, batch: Sequence[NDArray[np.integer[Any]]]) -> Pending:
        """As start(), but raise torch's error where the device has no memory."""
        import torch

        way = next(self._turns)
        with torch.inference_mode():
            vectors = self._flat(way, batch) if self._forward else self._padded(way, batch)
            return way.fetch(vectors[:, : self.dim].float())

    def _flat(self, way: Staging, batch: Sequence[NDArray[np.integer[Any]]]) -> torch.Tensor:
        assert self._forward is not None
        lengths = [len(ids) for ids in batch]
        host = way.ids(sum(lengths))
        np.concatenate(batch, out=host.numpy())
        return self._forward(way.upload(host), lengths)

    def _padded(self, way: Staging, batch: Sequence[NDArray[np.integer[Any]]]) -> torch.Tensor:
        longest = max(len(ids) for ids in batch)
        lengths = np.fromiter((len(ids) for ids in batch), dtype=np.int64, count=len(batch))[:, None]
        # Without padding there is nothing to mask, and attention takes its faster path.
        padded = bool((lengths < longest).any())
        host = way.ids((2 if padded else 1) * len(batch) * longest)
        shape = (-1, len(batch), longest)
        view = host.numpy().reshape(shape)
        if padded:
            columns = np.arange(longest)
            filled = columns >= longest - lengths if self._pad_left else columns < lengths
            view[0] = self._pad_id
            view[1] = filled
            view[0][filled] = np.concatenate(batch)
        else:
            np.stack(batch, out=view[0])
        ids = way.upload(host).view(shape)
        features: dict[str, Any] = {"input_ids": ids[0], "prompt_length": self._prompt_length}
        if padded:
            features["attention_mask"] = ids[1]
        vectors: torch.Tensor = self._network(features)["sentence_embedding"]
        return vectors

    def _in_less_memory(self, batch: Sequence[NDArray[np.integer[Any]]], reason: str) -> Pending:
        if (pending := self._alone(batch)) is not None:
            return pending
        if len(batch) > 1:
            self.oom_splits += 1
            sizes = [len(ids) for ids in batch]
            cost = len(batch) * max(sizes) if self.pads else sum(sizes)
            self.token_budget = min(self.token_budget, cost // 2)
            self._calm = 0
            event(
                log, "out of memory: batch split", level=logging.WARNING, tokens=cost, texts=len(batch),
                token_budget=self.token_budget, splits=self.oom_splits, reason=reason,
            )  # fmt: skip
            middle = len(batch) // 2
            halves = [self.start(batch[:middle]), self.start(batch[middle:])]
            return Pending(lambda: np.concatenate([half.result() for half in halves]))
        for seconds in memory.WAITS:
            time.sleep(seconds)
            if (pending := self._alone(batch)) is not None:
                return pending
        raise DeviceFull(
            f"{self.device} has no memory for one text of {len(batch[0])} tokens, though nothing else of "
            f"this process is there and {sum(memory.WAITS):g} s were waited: see what else uses the device "
            f"(nvidia-smi), raise MODEL_MAX_MEMORY_GB, or lower SEMANTIK_CHUNK_TOKENS ({reason})"
        )

    def _alone(self, batch: Sequence[NDArray[np.integer[Any]]]) -> Pending | None:
        """Run a batch with nothing else in flight and no memory kept aside; None when it still fails."""
        for way in self._staging:
            way.finish()
        memory.release(self.device)
        try:
            return self.launch(batch)
        except RuntimeError as error:
            if not memory.ran_out(error):
                raise
        return None

    def _went_well(self) -> None:
        if self.token_budget < self._full_budget:
            self._calm += 1
            if self._calm >= CALM_BATCHES:
                self._calm = 0
                self.token_budget = min(2 * self.token_budget, self._full_budget)


def load_model(settings: Settings) -> Model:
    """Load the model of SEMANTIK_MODEL_DIR onto its device, in the precision that suits both.

    Raises SettingsError when the directory holds no model, the device asked for is not there or too small, or
    the precision asked for bends the vectors, DeviceFull when others hold the device's memory.
    """
    if not settings.model_dir:
        raise SettingsError("SEMANTIK_MODEL_DIR is not set: it names the model's directory")
    directory = Path(settings.model_dir)
    description = describe_model(directory)
    device_module.environment(settings)
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = device_module.choose(settings)
    # Read by the tokenizer at its first batch. On a CPU the cores belong to the forward pass.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if device == "cuda" else "false"
    if settings.threads > 0:
        torch.set_num_threads(settings.threads)

    def build(network: Any, chosen: str, where: str) -> Model:
        return Model(
            network,
            description,
            name=settings.model or description.name,
            revision=settings.model_revision or description.revision,
            device=where,
            token_budget=settings.token_budget or TOKEN_BUDGETS[where],
            precision=chosen,
        )

    limit = memory.cap(settings.model_max_memory_gb) if device == "cuda" else 0
    try:
        model = precision.settle(
            lambda stored: _open(directory, description, stored),
            build,
            wanted=settings.precision,
            device=device,
            room=memory.room(limit) if device == "cuda" else None,
        )
    except RuntimeError as error:
        if device == "cpu" or not memory.ran_out(error):
            raise
        raise memory.refusal(limit, error) from error
    model.warm_up()
    if settings.role != "query":  # one question has no other beside it
        model.share(torch.get_num_threads())
    if device == "cuda" and not settings.token_budget:
        memory.fit_budget(model, limit)
    return model


def _open(directory: Path, description: ModelDescription, precision: str) -> Any:
    """Load the weights onto the CPU, in float32 or in the precision they are "stored" in."""
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    try:
        network = SentenceTransformer(
            str(directory),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": "auto" if precision == "stored" else getattr(torch, precision)},
        )
    except SafetensorError as error:  # of no other kind: weights that were cut off on their way here
        raise SettingsError(
            f"the model in {directory} cannot be loaded: its weights are damaged ({error}): copy it again"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise SettingsError(f"the model in {directory} cannot be loaded: {error}") from error
    network.eval()
    dim = network.get_embedding_dimension()
    if dim != description.dim:
        raise SettingsError(
            f"{directory}: its files promise {description.dim} dimensions, the model gives {dim}"
        )
    return network


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
