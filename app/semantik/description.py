"""What a sentence-transformers directory says of its model: read from its files, without torch."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semantik.exceptions import SettingsError

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
    revision: str  # SHA-256 over the paths and contents of its files but hidden ones, hexadecimal
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
    # What begins with a dot is a downloader's notes or version control, and no part of the model.
    files = {name: path for name, path in files.items() if not f"/{name}".count("/.")}
    for name in sorted(files):
        try:
            with files[name].open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise SettingsError(
                f"{files[name]} cannot be read: {error.strerror}; all files of a model must be readable"
            ) from error
        total.update(f"{name}\0{content}\n".encode())
        size += files[name].stat().st_size
    return total.hexdigest(), size


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
