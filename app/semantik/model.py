"""The embedding model: loaded from a sentence-transformers directory, run on token ids that the engine
packed.

torch and sentence_transformers are imported inside functions only: a process that manages others must never
import them (even asking whether CUDA is there breaks its children). `python -m semantik.model DIR` describes
a directory without them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semantik.exceptions import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from semantik.settings import Settings

#: Tokens per batch, padding included, where SEMANTIK_TOKEN_BUDGET says nothing. A CPU is fastest while a
#: batch's activations stay in its caches; a GPU wants work for all its multiprocessors at once.
TOKEN_BUDGETS = {"cpu": 2_048, "cuda": 65_536}

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Tokenizers without a limit of their own say 10^30.
_NO_LIMIT = 10**6


@dataclass(frozen=True)
class ModelDescription:
    """What a model directory says of itself."""

    name: str
    revision: str  # SHA-256 over the paths and contents of its files, hexadecimal
    dim: int  # of a vector
    max_tokens: int  # per text, special tokens included
    size_bytes: int  # of all files: about what the weights take in memory in the precision they are stored in


def describe_model(directory: Path) -> ModelDescription:
    """Read dimension, limit and revision from the files of `directory`, without torch.

    Raises SettingsError when it holds no sentence-transformers model that this engine can run.
    """
    modules = _read_json(directory / "modules.json", directory)
    transformer = _module(modules, "Transformer")
    if transformer is None:
        raise SettingsError(
            f"{directory}/modules.json names no Transformer module: such a model cannot be run here"
        )
    base = directory / str(transformer["path"])
    if not any((base / name).is_file() for name in _WEIGHTS):
        raise SettingsError(f"{base} holds no weights (model.safetensors): copy the whole model directory")
    if not (base / "tokenizer.json").is_file():
        raise SettingsError(f"{base} holds no tokenizer.json: only models with a fast tokenizer can be run")
    revision, size = _revision(directory)
    return ModelDescription(
        name=directory.resolve().name,
        revision=revision,
        dim=_dim(directory, modules),
        max_tokens=_max_tokens(base, directory),
        size_bytes=size,
    )


def _read_json(path: Path, directory: Path, *, optional: bool = False) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        missing = path.relative_to(directory)
        raise SettingsError(
            f"{directory} holds no sentence-transformers model: {missing} is missing; "
            "SEMANTIK_MODEL_DIR must name the directory that holds modules.json"
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


def _module(modules: Any, kind: str) -> dict[str, Any] | None:
    return next((module for module in reversed(modules) if str(module["type"]).endswith(f".{kind}")), None)


def _dim(directory: Path, modules: Any) -> int:
    dim = 0
    if pooling := _module(modules, "Pooling"):
        path = directory / str(pooling["path"]) / "config.json"
        config = _read_json(path, directory)
        width = config.get("word_embedding_dimension") or config.get("embedding_dimension") or 0
        # Several pooling modes are concatenated. Named one by one up to sentence-transformers 5, listed
        # since.
        modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        listed = config.get("pooling_mode")
        dim = int(width) * (len(listed) if isinstance(listed, list) else max(1, len(modes)))
    if dense := _module(modules, "Dense"):
        dim = int(_read_json(directory / str(dense["path"]) / "config.json", directory)["out_features"])
    own = _read_json(directory / "config_sentence_transformers.json", directory, optional=True)
    if own.get("truncate_dim"):
        dim = min(dim, int(own["truncate_dim"]))
    if dim <= 0:
        raise SettingsError(f"{directory}: neither a Pooling nor a Dense module says how long a vector is")
    return dim


def _max_tokens(base: Path, directory: Path) -> int:
    config = _read_json(base / "config.json", directory)
    tokenizer = _read_json(base / "tokenizer_config.json", directory, optional=True)
    own = _read_json(base / "sentence_bert_config.json", directory, optional=True)
    positions = config.get("max_position_embeddings")
    if positions and config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # fairseq's numbering starts behind the padding index
    limits = [own.get("max_seq_length"), tokenizer.get("model_max_length"), positions]
    known = [int(limit) for limit in limits if limit and limit < _NO_LIMIT]
    if not known:
        raise SettingsError(
            f"{base} does not say how many tokens a text may have (sentence_bert_config.json)"
        )
    return min(known)


def _revision(directory: Path) -> tuple[str, int]:
    total = hashlib.sha256()
    size = 0
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    for name in sorted(files):
        with files[name].open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name}\0{content}\n".encode())
        size += files[name].stat().st_size
    return total.hexdigest(), size


class Model:
    """A loaded model. One process, one device; calls do not overlap."""

    def __init__(
        self,
        network: Any,
        description: ModelDescription,
        *,
        name: str,
        revision: str,
        device: str,
        token_budget: int,
    ) -> None:
        self.name = name
        self.revision = revision
        self.dim = description.dim
        self.max_tokens = description.max_tokens
        self.device = device
        self.token_budget = token_budget
        self._network = network
        own = network.tokenizer
        self._pad_id = int(own.pad_token_id or 0)
        self._pad_left = own.padding_side == "left"
        self.tokenizer = _bare_tokenizer(own)
        #: ids before and after a document's own, document prompt included
        self.prefix, self.suffix = _wrapping(self.tokenizer, (network.prompts or {}).get("document") or "")

    def embed_ids(self, batch: Sequence[NDArray[np.integer[Any]]]) -> NDArray[np.float32]:
        """Return one vector per item: float32 (n, dim), in the order given.

        An item is the ids of one text, special tokens included; the batch is padded to the longest.
        """
        import torch

        longest = max(len(ids) for ids in batch)
        padded = np.full((len(batch), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(batch), longest), dtype=np.int64)
        for row, ids in enumerate(batch):
            place = slice(longest - len(ids), longest) if self._pad_left else slice(0, len(ids))
            padded[row, place] = ids
            mask[row, place] = 1
        features: dict[str, Any] = {"input_ids": torch.from_numpy(padded).to(self.device)}
        # Without padding there is nothing to mask, and attention takes its faster path.
        if not mask.all():
            features["attention_mask"] = torch.from_numpy(mask).to(self.device)
        # Models that leave the prompt out of pooling need its length.
        features["prompt_length"] = len(self.prefix) if len(self.prefix) > 1 else 0
        with torch.inference_mode():
            vectors = self._network(features)["sentence_embedding"][:, : self.dim].float()
        result: NDArray[np.float32] = vectors.cpu().numpy()
        return result

    def embed_question(self, text: str) -> NDArray[np.float32]:
        """Return the vector of a question: float32 (dim,), with the model's query prompt where it has one."""
        vector = self._network.encode_query(text, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vector, dtype=np.float32)

    def warm_up(self) -> None:
        """Run one batch, so that the first document does not pay for kernels and allocations."""
        self.embed_ids([np.concatenate((self.prefix, self.suffix))])


def _bare_tokenizer(own: Any) -> Tokenizer:
    """Return a copy of the fast tokenizer that neither truncates nor pads, as the model's own does."""
    from tokenizers import Tokenizer

    backend = getattr(own, "backend_tokenizer", None)
    if backend is None:
        raise SettingsError(f"{type(own).__name__} is no fast tokenizer: exact chunks need one")
    copy: Tokenizer = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _wrapping(tokenizer: Tokenizer, prompt: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids that the model wants before and after those of a document."""
    probe = tokenizer.encode("word", add_special_tokens=False).ids
    plain = tokenizer.encode("word").ids
    starts = [at for at in range(len(plain)) if plain[at : at + len(probe)] == probe]
    if not starts:
        raise SettingsError(
            "the tokenizer changes a text's ids when it adds special tokens: chunks cannot be exact"
        )
    after = len(plain) - starts[0] - len(probe)
    whole = tokenizer.encode(f"{prompt}word").ids
    before = len(whole) - after - len(probe)
    return np.array(whole[:before], dtype=np.int64), np.array(whole[len(whole) - after :], dtype=np.int64)


def load_model(settings: Settings) -> Model:
    """Load the model of SEMANTIK_MODEL_DIR onto its device.

    Raises SettingsError when the directory holds no model, or the device asked for is not there.
    """
    if not settings.model_dir:
        raise SettingsError("SEMANTIK_MODEL_DIR is not set: it names the model's directory")
    directory = Path(settings.model_dir)
    description = describe_model(directory)
    _environment(settings)
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = _device(settings)
    # Read by the tokenizer at its first batch. On a CPU the cores belong to the forward pass.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if device == "cuda" else "false"
    if settings.threads > 0:
        torch.set_num_threads(settings.threads)
    if device == "cuda" and settings.model_max_memory_gb > 0:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, settings.model_max_memory_gb * 2**30 / total), 0)
    try:
        network = SentenceTransformer(
            str(directory), device=device, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise SettingsError(f"the model in {directory} cannot be loaded: {error}") from error
    network.eval()
    if device == "cuda":
        network.to(_half_precision(network))
    dim = network.get_embedding_dimension()
    if dim != description.dim:
        raise SettingsError(
            f"{directory}: its files promise {description.dim} dimensions, the model gives {dim}"
        )
    model = Model(
        network,
        description,
        name=settings.model or description.name,
        revision=settings.model_revision or description.revision,
        device=device,
        token_budget=settings.token_budget or TOKEN_BUDGETS[device],
    )
    model.warm_up()
    return model


def _environment(settings: Settings) -> None:
    """Set what torch and the tokenizer read when they are first imported."""
    if settings.cuda_visible_devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = settings.cuda_visible_devices
    # No look at a hub, ever: hosts have no internet, and a model is what the inventory pinned.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _device(settings: Settings) -> str:
    import torch

    if settings.device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if settings.device == "auto":
        return "cpu"
    raise SettingsError(
        f"SEMANTIK_DEVICE=cuda, but torch {torch.__version__} sees no GPU "
        f"(CUDA_VISIBLE_DEVICES={settings.cuda_visible_devices!r}): is the driver loaded (nvidia-smi), "
        "is this a CUDA build of torch, may this unit open /dev/nvidia*?"
    )


def _half_precision(network: Any) -> Any:
    """Choose bfloat16 for a model that was trained in it (float16 overflows there), float16 for others."""
    import torch

    trained_in = getattr(network[0].auto_model.config, "dtype", None)
    return torch.bfloat16 if trained_in == torch.bfloat16 else torch.float16


def main(arguments: Sequence[str]) -> int:
    """Print the description of a model directory as JSON."""
    if len(arguments) != 1:
        print("usage: python -m semantik.model DIR", file=sys.stderr)
        return 2
    try:
        description = describe_model(Path(arguments[0]))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(description)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
