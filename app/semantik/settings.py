"""Settings from the environment: the one place that names each variable, its default and its meaning."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from semantik.exceptions import SettingsError

#: Where the control host keeps what the `semantik` command needs when systemd does not pass credentials.
OPERATOR_DIR = Path("/etc/semantik/operator")


@dataclass(frozen=True)
class Settings:
    """What a process of the cluster needs to know. Durations are seconds, sizes as the name says."""

    broker_url: str  # CELERY_BROKER_URL
    result_backend: str  # CELERY_RESULT_BACKEND
    database_url: str  # SEMANTIK_DATABASE_URL
    cuda_visible_devices: str = ""  # CUDA_VISIBLE_DEVICES: the UUID of this slot's GPU
    model_max_memory_gb: float = 0.0  # MODEL_MAX_MEMORY_GB: cap on GPU memory, 0 for the whole card
    host: str = ""  # SEMANTIK_HOST: defaults to the short host name
    slot: str = ""  # SEMANTIK_SLOT: host:n, set by the worker's unit
    release: str = ""  # SEMANTIK_RELEASE: the release directory this process runs from
    model_dir: str = ""  # SEMANTIK_MODEL_DIR: a sentence-transformers directory
    model: str = ""  # SEMANTIK_MODEL: the name collections remember
    model_revision: str = ""  # SEMANTIK_MODEL_REVISION
    model_dim: int = 0  # SEMANTIK_MODEL_DIM: so that the command needs no torch
    device: str = "auto"  # SEMANTIK_DEVICE: auto, cpu or cuda
    precision: str = "auto"  # SEMANTIK_PRECISION: auto, float32, float16 or bfloat16
    key_prefix: str = "semantik:"  # SEMANTIK_KEY_PREFIX: of every Redis key; the ACL allows no other
    redis_ca: str = ""  # SEMANTIK_CA_FILE: verifies Redis (rediss://)
    lease_seconds: float = 60.0  # SEMANTIK_LEASE_SECONDS
    renew_seconds: float = 10.0  # SEMANTIK_RENEW_SECONDS
    tick_seconds: float = 10.0  # SEMANTIK_TICK_SECONDS: the scheduler's longest sleep
    drain_seconds: float = 60.0  # SEMANTIK_DRAIN_SECONDS: after SIGTERM, before the shard is given back
    live_seconds: float = 30.0  # SEMANTIK_LIVE_SECONDS: a slot not seen for longer is not live
    health_seconds: float = 5.0  # SEMANTIK_HEALTH_SECONDS: between two looks at the slot's GPU
    rest_seconds: float = 60.0  # SEMANTIK_REST_SECONDS: a GPU that was too hot must have been well for
    shard_seconds: float = 45.0  # SEMANTIK_SHARD_SECONDS: of work per shard, by the slots' measured rate
    shard_documents: int = 500  # SEMANTIK_SHARD_DOCUMENTS: at most, per shard
    shards_per_slot: int = 2  # SEMANTIK_SHARDS_PER_SLOT: in Redis or running, per process of a live slot
    concurrency: int = 1  # SEMANTIK_CONCURRENCY: processes of this slot, each with the model
    chunk_tokens: int = 0  # SEMANTIK_CHUNK_TOKENS: 0 for the model's limit
    chunk_overlap: int = 32  # SEMANTIK_CHUNK_OVERLAP: tokens shared by neighbouring chunks
    token_budget: int = 0  # SEMANTIK_TOKEN_BUDGET: per batch; 0 for what suits the device: measured on a GPU
    threads: int = 0  # SEMANTIK_THREADS: torch's intra-op threads on the CPU; 0 for torch's default
    parser_socket: str = ""  # SEMANTIK_PARSER_SOCKET: empty for an exec'd child
    parser_count: int = 2  # SEMANTIK_PARSER_COUNT: parsers a worker keeps busy
    parse_seconds: float = 60.0  # SEMANTIK_PARSE_SECONDS: per document
    parse_memory_mb: int = 1024  # SEMANTIK_PARSE_MEMORY_MB: per document
    document_max_mb: int = 512  # SEMANTIK_DOCUMENT_MAX_MB
    crash_limit: int = 2  # SEMANTIK_CRASH_LIMIT: of a shard, before its documents are set apart
    expiry_limit: int = 5  # SEMANTIK_EXPIRY_LIMIT: leases that ran out, before the same
    plan_limit: int = 5  # SEMANTIK_PLAN_LIMIT: attempts at planning a job
    keep_jobs_days: float = 30.0  # SEMANTIK_KEEP_JOBS_DAYS: finished jobs
    visibility_seconds: int = 21_600  # SEMANTIK_VISIBILITY_SECONDS: far above the longest shard
    exact_search_chunks: int = 50_000  # SEMANTIK_EXACT_SEARCH_CHUNKS: above it, an HNSW index
    role: str = ""  # SEMANTIK_ROLE: worker, query or planner, set by the unit; empty for everything else
    imports: str = ""  # SEMANTIK_IMPORTS: module,module with tasks of the users' own, for every worker
    gpu_name: str = ""  # SEMANTIK_GPU_NAME: this slot's card, as nvidia-smi names it
    model_max_tokens: int = 0  # SEMANTIK_MODEL_MAX_TOKENS: the model's limit, special tokens included
    runtime_dir: str = ""  # RUNTIME_DIRECTORY: of the unit; empty for a directory of this user's own
    expected_slots: str = ""  # SEMANTIK_EXPECTED_SLOTS: host:n,host:n; what `semantik check` looks for
    flower_port: int = 5555  # SEMANTIK_FLOWER_PORT: on loopback
    nginx: str = ""  # SEMANTIK_NGINX: host:port that shows Flower over TLS; empty for none


_NAMES = {
    "broker_url": "CELERY_BROKER_URL",
    "result_backend": "CELERY_RESULT_BACKEND",
    "cuda_visible_devices": "CUDA_VISIBLE_DEVICES",
    "model_max_memory_gb": "MODEL_MAX_MEMORY_GB",
    "redis_ca": "SEMANTIK_CA_FILE",
    "runtime_dir": "RUNTIME_DIRECTORY",
}

#: Around the text of a chunk, with most models; a model with more, or with a prompt, has room for less.
SPECIAL_TOKENS = 2
_AT_LEAST_ONE = (
    "concurrency",
    "document_max_mb",
    "parse_memory_mb",
    "parser_count",
    "shard_documents",
    "shards_per_slot",
)


def variable(field: str) -> str:
    """Return the environment variable that sets `field`."""
    return _NAMES.get(field, f"SEMANTIK_{field.upper()}")


def credential(name: str, env: Mapping[str, str]) -> str | None:
    """Return the secret `name` from systemd's credentials or, for people, the operator directory.

    Secrets never travel in the environment: units pass them with LoadCredential.
    """
    directory = Path(env.get("CREDENTIALS_DIRECTORY") or OPERATOR_DIR)
    try:
        return (directory / name).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise SettingsError(
            f"{directory / name} cannot be read: run as a member of the group 'semantik' "
            "(usermod -aG semantik USER, then log in again)"
        ) from error


def with_password(url: str, password: str | None) -> str:
    """Return `url` with `password` put in, where it names a user and no password of its own."""
    parts = urlsplit(url)
    if not password or parts.password or not parts.username:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{quote(password, safe='')}@{host}"))


def read_env_file(path: Path) -> dict[str, str]:
    """Read NAME=value lines as systemd's EnvironmentFile does, for commands that no unit starts."""
    values: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, PermissionError):
        return values
    for line in text.splitlines():
        name, found, value = line.strip().partition("=")
        if found and not name.startswith(("#", ";")):
            values[name] = value.strip("\"'")
    return values


def convert(field: str, text: str) -> str | int | float:
    """Return `text` as a value of the field `field`.

    Raises SettingsError naming the variable when it is not of the field's type, or no value it can have.
    """
    kind = {"int": int, "float": float}.get(str(Settings.__dataclass_fields__[field].type), str)
    try:
        value: str | int | float = kind(text)
    except ValueError:
        raise SettingsError(f"{variable(field)}={text!r} is not a number ({kind.__name__})") from None
    # A duration of nothing makes a loop without a pause, or a lease that has run out when it is taken.
    if field.endswith(("_seconds", "_days")) and not (math.isfinite(float(value)) and float(value) > 0):
        raise SettingsError(f"{variable(field)}={text!r}: a duration must be more than 0")
    if field in _AT_LEAST_ONE and float(value) < 1:
        raise SettingsError(f"{variable(field)}={text!r}: at least 1")
    if isinstance(value, (int, float)) and not float(value) >= 0:
        raise SettingsError(f"{variable(field)}={text!r}: it cannot be negative")
    if field == "device" and value not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"{variable(field)}={text!r}: choose auto, cpu or cuda")
    if field == "precision" and value not in ("auto", "float32", "float16", "bfloat16"):
        raise SettingsError(f"{variable(field)}={text!r}: choose auto, float32, float16 or bfloat16")
    return value


def longest_overlap(chunk_tokens: float) -> int:
    """Return how many tokens chunks may share: half of what a chunk has beside its two special tokens."""
    return max(0, (int(chunk_tokens) - SPECIAL_TOKENS) // 2)


def agree(values: Mapping[str, str | int | float]) -> None:
    """Raise SettingsError naming both variables where two of `values`, or one and a default, contradict."""

    def number(field: str) -> float:
        default: Any = Settings.__dataclass_fields__[field].default
        return float(values.get(field, default))

    lease, renew = number("lease_seconds"), number("renew_seconds")
    if lease < 3 * renew:
        raise SettingsError(
            f"{variable('lease_seconds')}={lease:g} must be at least three times "
            f"{variable('renew_seconds')}={renew:g}: one late renewal must not lose a shard"
        )
    chunk, overlap = number("chunk_tokens"), number("chunk_overlap")
    if chunk > 0 and overlap > longest_overlap(chunk):
        raise SettingsError(
            f"{variable('chunk_overlap')}={overlap:g} is too much for {variable('chunk_tokens')}={chunk:g}: "
            f"choose 0 to {longest_overlap(chunk)}, half of a chunk"
        )


def load(env: Mapping[str, str] | None = None) -> Settings:
    """Build Settings from `env` (default: the process environment, over /etc/semantik/semantik.env).

    Raises SettingsError naming the variable when one is missing, not of its type, or contradicts another.
    """
    if env is None:
        # check.env holds what `semantik check` expects to find, a file of its own: a service is restarted
        # when a file that it reads has changed, and a new slot is no reason for that.
        files = (read_env_file(Path("/etc/semantik") / name) for name in ("semantik.env", "check.env"))
        env = {name: value for file in files for name, value in file.items()} | dict(os.environ)
    values: dict[str, str | int | float] = {}
    for field in fields(Settings):
        text = env.get(variable(field.name), "")
        if text != "":
            values[field.name] = convert(field.name, text)
    agree(values)
    for field_name in ("broker_url", "database_url"):
        if field_name not in values:
            raise SettingsError(
                f"{variable(field_name)} is not set: on the cluster's hosts it stands in "
                "/etc/semantik/semantik.env"
            )
    values.setdefault("result_backend", values["broker_url"])
    for field_name in ("broker_url", "result_backend"):
        values[field_name] = with_password(str(values[field_name]), credential("redis_password", env))
    values["database_url"] = with_password(str(values["database_url"]), credential("database_password", env))
    values.setdefault("host", socket.gethostname().partition(".")[0])
    return Settings(**values)  # type: ignore[arg-type]
