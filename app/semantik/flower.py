"""Flower, with the credentials it must have: `python -m semantik.flower`, run by semantik-flower.service.

Flower runs in this process, not by its command line, so that the password never stands among a process's
arguments. It binds loopback alone; nginx is what the network reaches.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from semantik.exceptions import EX_CONFIG, SemantikError, SettingsError
from semantik.notify import notify
from semantik.settings import Settings, credential, load

PASSWORD_LENGTH = 12
#: Long enough for the length rule and still the first things that anyone tries.
KNOWN_PASSWORDS = frozenset(
    {
        "123456789012",
        "1234567890123",
        "admin-password",
        "adminadminadmin",
        "administrator",
        "adminpassword",
        "adminpassword1",
        "change-me-please",
        "changeme1234",
        "changeme12345",
        "changemechangeme",
        "default-password",
        "defaultpassword",
        "flower-password",
        "flowerflower",
        "flowerpassword",
        "letmeinletmein",
        "passw0rdpassw0rd",
        "password1234",
        "password12345",
        "password123456",
        "passwordpassword",
        "qwertyuiop12",
        "qwertyuiopas",
        "semantik-password",
        "semantikpassword",
        "semantiksemantik",
        "supersecret1",
        "your-password-here",
        "yourpassword1",
    }
)
#: Events of the last tasks that Flower shows; 10,000 of them fit its MemoryMax of 512M with room.
MAX_TASKS = 10_000
SAVE_SECONDS = 60
OFFLINE_SECONDS = 86_400

log = logging.getLogger("semantik.flower")


def credentials(env: Mapping[str, str]) -> list[str]:
    """Return the checked `user:password` entries: the credential `flower_basic_auth`, or FLOWER_BASIC_AUTH.

    Raises SettingsError when there is none, or one that is malformed, a known default or easy to guess. The
    message never repeats the password.
    """
    text = credential("flower_basic_auth", env) or env.get("FLOWER_BASIC_AUTH", "")
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not entries:
        raise SettingsError(
            "FLOWER_BASIC_AUTH is not set: Flower never runs without a password; set 'user:password', "
            "or pass the credential flower_basic_auth with LoadCredential"
        )
    for entry in entries:
        refuse_weak(entry)
    return entries


def refuse_weak(entry: str) -> None:
    """Raise SettingsError unless `entry` is `user:password` with a password that is not easy to guess."""
    user, colon, password = entry.partition(":")
    if not colon or not user:
        raise SettingsError("FLOWER_BASIC_AUTH is not of the form 'user:password'")
    reason = ""
    if not entry.isascii() or not entry.isprintable():
        reason = "has characters that HTTP basic authentication does not carry: use printable ASCII"
    elif password.lower() == user.lower():
        reason = "is the user's own name"
    elif len(password) < PASSWORD_LENGTH:
        reason = f"is shorter than {PASSWORD_LENGTH} characters"
    elif password.lower() in KNOWN_PASSWORDS:
        reason = "is a well-known default"
    elif len(set(password)) < 5:
        reason = "repeats fewer than five different characters"
    if reason:
        raise SettingsError(
            f"FLOWER_BASIC_AUTH: the password of {user!r} {reason}; make one with 'openssl rand -hex 24'"
        )


def options(settings: Settings, env: Mapping[str, str]) -> dict[str, Any]:
    """Return Flower's options. State is kept where systemd's StateDirectory says, and only then."""
    state = env.get("STATE_DIRECTORY", "").partition(":")[0]
    return {
        "address": "127.0.0.1",
        "port": settings.flower_port,
        "basic_auth": credentials(env),
        # Stopping workers and sending tasks is more than a monitor needs; FLOWER_READ_ONLY=false allows it.
        "read_only": env.get("FLOWER_READ_ONLY", "true").lower() not in ("false", "0", "no"),
        "xheaders": True,  # nginx names the real client
        "max_tasks": MAX_TASKS,
        "purge_offline_workers": OFFLINE_SECONDS,
        "inspect_timeout": 5000.0,  # milliseconds; a host with every core busy answers late
        "tasks_columns": "name,uuid,state,args,received,started,runtime,worker",
        "persistent": bool(state),
        "db": str(Path(state) / "flower") if state else "flower",
        "state_save_interval": SAVE_SECONDS * 1000 if state else 0,
    }


def serve(settings: Settings, chosen: Mapping[str, Any]) -> None:
    """Run Flower until SIGTERM or Ctrl-C; systemd hears READY once the port is open."""
    from flower.app import Flower
    from flower.options import options as flower_options
    from flower.urls import settings as application

    from semantik.celery_app import app

    for name, value in chosen.items():
        setattr(flower_options, name, value)
    flower = Flower(capp=app, options=flower_options, **application)
    atexit.register(flower.stop)  # saves the state
    signal.signal(signal.SIGTERM, _leave)
    try:
        port = flower.start_http_server()
    except OSError as error:
        raise SemantikError(
            f"127.0.0.1:{settings.flower_port} cannot be opened ({error.strerror}): another Flower runs, "
            "or set SEMANTIK_FLOWER_PORT"
        ) from error
    log.info("listening on 127.0.0.1:%s, read only: %s", port, chosen["read_only"])
    notify("READY=1")
    try:
        flower.start()
    except (KeyboardInterrupt, SystemExit):
        log.info("stopping")


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def main() -> int:
    """Check the credentials, then serve. Exit status 78 when the configuration must be mended first."""
    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s", stream=sys.stderr)
    # One line per page viewed is noise in the journal; nginx has the access log.
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    try:
        settings = load()
        serve(settings, options(settings, os.environ))
    except SettingsError as error:
        print(f"semantik-flower: {error}", file=sys.stderr)
        return EX_CONFIG
    except SemantikError as error:
        print(f"semantik-flower: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
