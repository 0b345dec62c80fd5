"""Flower as its unit runs it, against a real Redis."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from services import Services, free_port

from semantik import flower

GOOD = "ops:c0rrect-horse-battery"


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


def heard(ready: socket.socket, process: subprocess.Popen[str]) -> bytes:
    """What the service manager hears, b"" when the process ends without a word."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            return ready.recv(100)
    return b""


def get(url: str, credentials: str = "") -> int:
    request = urllib.request.Request(url)
    if credentials:
        request.add_header("Authorization", "Basic " + base64.b64encode(credentials.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_flower_asks_for_the_password_says_ready_and_keeps_its_state(
    services: Services, tmp_path: Path
) -> None:
    port = free_port()
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ready.bind(str(tmp_path / "notify"))
    ready.settimeout(1)
    process = start(
        environment(
            CELERY_BROKER_URL=services.redis_url,
            FLOWER_BASIC_AUTH=GOOD,
            SEMANTIK_FLOWER_PORT=str(port),
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            STATE_DIRECTORY=str(tmp_path),
        )
    )
    try:
        assert heard(ready, process) == b"READY=1"
        url = f"http://127.0.0.1:{port}"
        assert get(f"{url}/workers") == 401
        assert get(f"{url}/workers", "ops:wrong-password-1") == 401
        assert get(f"{url}/api/workers") == 401
        assert get(f"{url}/workers", GOOD) == 200
        assert get(f"{url}/api/workers", GOOD) == 200
        assert GOOD.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=30)
        ready.close()
    assert process.returncode == 0, said
    assert GOOD.partition(":")[2] not in said
    assert list(tmp_path.glob("flower*")), said
