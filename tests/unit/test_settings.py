"""Each environment variable is read, typed and named in the error that it causes."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from semantik import settings as module
from semantik.exceptions import SettingsError
from semantik.settings import Settings, credential, load, read_env_file, variable, with_password

BASE = {
    "CELERY_BROKER_URL": "redis://broker:6379/0",
    "SEMANTIK_DATABASE_URL": "postgresql://db/semantik",
}


@pytest.fixture(autouse=True)
def _no_operator_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "OPERATOR_DIR", tmp_path / "none")


def test_the_variables_that_celery_users_know_are_read() -> None:
    settings = load(
        {
            **BASE,
            "CELERY_RESULT_BACKEND": "redis://results:6379/1",
            "CUDA_VISIBLE_DEVICES": "GPU-8f3b",
            "MODEL_MAX_MEMORY_GB": "11.5",
        }
    )
    assert settings.broker_url == "redis://broker:6379/0"
    assert settings.result_backend == "redis://results:6379/1"
    assert settings.cuda_visible_devices == "GPU-8f3b"
    assert settings.model_max_memory_gb == 11.5


def test_the_result_backend_is_the_broker_unless_it_is_set() -> None:
    assert load(BASE).result_backend == "redis://broker:6379/0"


@pytest.mark.parametrize(
    "field",
    [field for field in fields(Settings) if field.name not in ("device", "precision")],
    ids=lambda f: f.name,
)
def test_every_field_is_read_from_its_variable(field: Field[Any]) -> None:
    name, kind = field.name, str(field.type)
    text, value = {"int": ("7", 7), "float": ("7.5", 7.5)}.get(kind, ("redis://x/7", "redis://x/7"))
    # What the value must agree with.
    others = {"SEMANTIK_RENEW_SECONDS": "1", "SEMANTIK_CHUNK_OVERLAP": "2"}
    assert getattr(load({**BASE, **others, variable(name): text}), name) == value


def test_every_own_variable_is_named_after_its_field_and_stands_in_the_source() -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    for field in fields(Settings):
        assert f"# {variable(field.name)}" in source, field.name


def test_an_empty_variable_means_the_default() -> None:
    assert load({**BASE, "SEMANTIK_LEASE_SECONDS": ""}).lease_seconds == 60.0


@pytest.mark.parametrize("missing", sorted(BASE))
def test_a_missing_url_is_named_with_the_file_to_look_at(missing: str) -> None:
    env = {name: value for name, value in BASE.items() if name != missing}
    with pytest.raises(SettingsError, match=rf"{missing} is not set.*/etc/semantik/semantik\.env"):
        load(env)


def test_a_number_that_is_none_is_named_with_its_value() -> None:
    with pytest.raises(SettingsError, match="MODEL_MAX_MEMORY_GB='lots' is not a number"):
        load({**BASE, "MODEL_MAX_MEMORY_GB": "lots"})


def test_a_device_that_does_not_exist_is_refused() -> None:
    assert load({**BASE, "SEMANTIK_DEVICE": "cuda"}).device == "cuda"
    with pytest.raises(SettingsError, match="SEMANTIK_DEVICE='tpu': choose auto, cpu or cuda"):
        load({**BASE, "SEMANTIK_DEVICE": "tpu"})


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf"])
@pytest.mark.parametrize(
    "name", ["SEMANTIK_RENEW_SECONDS", "SEMANTIK_TICK_SECONDS", "SEMANTIK_KEEP_JOBS_DAYS"]
)
def test_a_duration_that_is_none_is_refused(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{text}'.*more than 0"):
        load({**BASE, name: text})


def test_a_lease_outlives_a_late_renewal() -> None:
    assert load({**BASE, "SEMANTIK_LEASE_SECONDS": "30"}).lease_seconds == 30
    with pytest.raises(SettingsError, match=r"SEMANTIK_LEASE_SECONDS=29 .*SEMANTIK_RENEW_SECONDS=10"):
        load({**BASE, "SEMANTIK_LEASE_SECONDS": "29"})


def test_an_overlap_is_half_of_its_chunk_at_most() -> None:
    assert load({**BASE, "SEMANTIK_CHUNK_TOKENS": "66"}).chunk_tokens == 66
    assert load({**BASE, "SEMANTIK_CHUNK_OVERLAP": "500"}).chunk_overlap == 500, (
        "the model's limit is unknown"
    )
    with pytest.raises(
        SettingsError, match=r"SEMANTIK_CHUNK_OVERLAP=32 .*SEMANTIK_CHUNK_TOKENS=64: choose 0 to 31"
    ):
        load({**BASE, "SEMANTIK_CHUNK_TOKENS": "64"})


def test_passwords_come_from_credentials_into_urls_that_name_a_user(tmp_path: Path) -> None:
    (tmp_path / "redis_password").write_text("p@ss/word\n")
    (tmp_path / "database_password").write_text("other\n")
    settings = load(
        {
            "CREDENTIALS_DIRECTORY": str(tmp_path),
            "CELERY_BROKER_URL": "rediss://worker@head:6379/0",
            "CELERY_RESULT_BACKEND": "rediss://head:6379/0",
            "SEMANTIK_DATABASE_URL": "postgresql://worker@head/semantik?sslmode=verify-full",
        }
    )
    assert settings.broker_url == "rediss://worker:p%40ss%2Fword@head:6379/0"
    assert settings.result_backend == "rediss://head:6379/0"
    assert settings.database_url == "postgresql://worker:other@head/semantik?sslmode=verify-full"


def test_a_password_in_the_url_wins() -> None:
    assert with_password("redis://u:own@h/0", "other") == "redis://u:own@h/0"


def test_people_read_the_operator_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "OPERATOR_DIR", tmp_path)
    (tmp_path / "redis_password").write_text("secret\n")
    assert credential("redis_password", {}) == "secret"
    assert credential("database_password", {}) is None


def test_an_unreadable_secret_says_which_group_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SettingsError, match="member of the group 'semantik'"):
        credential("redis_password", {})


def test_an_environment_file_is_read_as_systemd_does(tmp_path: Path) -> None:
    path = tmp_path / "semantik.env"
    path.write_text(
        '# comment\n\nSEMANTIK_HOST=head\nCELERY_BROKER_URL="redis://h/0"\n; old\nnot a setting\n'
    )
    assert read_env_file(path) == {"SEMANTIK_HOST": "head", "CELERY_BROKER_URL": "redis://h/0"}
    assert read_env_file(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("SEMANTIK_DOCUMENT_MAX_MB", "-1", "at least 1"),
        ("SEMANTIK_PARSER_COUNT", "0", "at least 1"),
        ("SEMANTIK_TOKEN_BUDGET", "-5", "cannot be negative"),
        ("MODEL_MAX_MEMORY_GB", "nan", "cannot be negative"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name: str, text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{text}': .*{reason}"):
        load({**BASE, name: text})
