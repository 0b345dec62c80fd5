"""Flower never starts without a good password, and with one it asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from semantik import flower
from semantik.exceptions import SettingsError
from semantik.settings import load

GOOD = "ops:c0rrect-horse-battery"
REFUSED = {
    "": "not set",
    "admin:admin": "the user's own name",
    "admin:Admin": "the user's own name",
    "semantik-flower:semantik-flower": "the user's own name",
    "admin:tr0ub4d0r": "shorter than 12",
    "admin:PasswordPassword": "well-known default",
    "admin:changemechangeme": "well-known default",
    "admin:aaaabbbbccccdddd": "fewer than five",
    "admin:pässwörter-länger": "printable ASCII",
    "c0rrect-horse-battery": "form 'user:password'",
    ":c0rrect-horse-battery": "form 'user:password'",
    f"{GOOD},admin:admin": "the user's own name",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items(), ids=[text or "(empty)" for text in REFUSED])
def test_a_missing_or_weak_password_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        flower.credentials({"FLOWER_BASIC_AUTH": text, "CREDENTIALS_DIRECTORY": "/nonexistent"})


@pytest.mark.parametrize("text", ["admin:tr0ub4d0r", "admin:PasswordPassword", "c0rrect-horse-battery"])
def test_a_refusal_does_not_repeat_the_password(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        flower.credentials({"FLOWER_BASIC_AUTH": text, "CREDENTIALS_DIRECTORY": "/nonexistent"})
    assert text.rpartition(":")[2] not in str(caught.value)


def test_flower_basic_auth_may_name_several_users() -> None:
    env = {"FLOWER_BASIC_AUTH": f"{GOOD}, eve:another-long-one", "CREDENTIALS_DIRECTORY": "/nonexistent"}
    assert flower.credentials(env) == [GOOD, "eve:another-long-one"]


def test_the_credential_comes_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "flower_basic_auth").write_text(GOOD + "\n")
    assert flower.credentials(
        {"FLOWER_BASIC_AUTH": "admin:admin", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    ) == [GOOD]


def test_options_bind_loopback_and_keep_state_where_systemd_says() -> None:
    env = {"FLOWER_BASIC_AUTH": GOOD, "CREDENTIALS_DIRECTORY": "/nonexistent"}
    settings = load({"CELERY_BROKER_URL": "redis://h/0", "SEMANTIK_DATABASE_URL": "postgresql://h/d"})
    chosen = flower.options(settings, env)
    assert (chosen["address"], chosen["port"], chosen["read_only"]) == ("127.0.0.1", 5555, True)
    assert chosen["persistent"] is False
    chosen = flower.options(settings, {**env, "STATE_DIRECTORY": "/var/lib/x", "FLOWER_READ_ONLY": "false"})
    assert (chosen["persistent"], chosen["db"], chosen["read_only"]) == (True, "/var/lib/x/flower", False)


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(Path(flower.__file__).parents[1]),
        "CREDENTIALS_DIRECTORY": "/nonexistent",
        "SEMANTIK_DATABASE_URL": "postgresql://127.0.0.1:1/none",
        **more,
    }


def start(env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "semantik.flower"],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_default_password_ends_the_service_with_a_status_that_is_not_restarted() -> None:
    process = start(environment(CELERY_BROKER_URL="redis://127.0.0.1:1/0", FLOWER_BASIC_AUTH="admin:admin"))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 78
    assert said.startswith(
        "semantik-flower: FLOWER_BASIC_AUTH: the password of 'admin' is the user's own name;"
    )
    assert len(said.splitlines()) == 1
