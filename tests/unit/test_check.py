"""The cluster check: what each part must show to be ok, and what is said when it does not."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from semantik import check
from semantik.check import Part, Pings, Recorded, Slot
from semantik.settings import Settings

SETTINGS = Settings(
    broker_url="redis://127.0.0.1:1/0",
    result_backend="redis://127.0.0.1:1/0",
    database_url="postgresql://127.0.0.1:1/none?connect_timeout=1",
    host="head",
    expected_slots="gpu1:0, gpu1:1",
)
GOOD = Slot("gpu1:0", "idle", "cuda NVIDIA L4", "GPU-a", "minilm", "abcdef0123", "0.1.0-aa", 2.0)
UP = Recorded(Part("postgresql", True, ""), {"scheduler": ("head", 3.0), "planner": ("head", 3.0)})
NAMES = frozenset({"planner@head", "query@gpu1", "worker0@gpu1", "worker1@gpu1"})
NODES = Pings(NAMES)
UNASKED = Pings(unasked="Redis cannot be reached")


def slots(*rows: Slot) -> Recorded:
    return replace(UP, slots={row.slot: row for row in rows})


def judge(rows: Recorded, pings: Pings = NODES, settings: Settings = SETTINGS) -> dict[str, Part]:
    parts = check.slot_parts(settings, check.expected_slots(settings), rows, pings)
    return {part.name: part for part in parts}


def test_a_slot_that_is_live_answers_and_fits_the_others_is_ok() -> None:
    parts = judge(slots(GOOD, replace(GOOD, slot="gpu1:1", state="busy")))
    assert [part.ok for part in parts.values()] == [True, True]
    assert parts["slot gpu1:0"].detail == "idle, cuda NVIDIA L4, minilm abcdef01, release 0.1.0-aa"


def test_a_slot_that_the_inventory_names_and_nobody_saw_is_bad() -> None:
    part = judge(slots(GOOD))["slot gpu1:1"]
    assert not part.ok
    assert part.detail == "never seen; on gpu1: systemctl status semantik-worker@1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"age": 300.0}, "last seen 5 min ago"),
        ({"state": "stopped"}, "stopped"),
        ({"state": "draining"}, "draining"),
        ({"state": "starting"}, "starting"),
        ({"release": "0.0.9-bb"}, "release is 0.0.9-bb, the cluster's is 0.1.0-aa"),
        ({"model_revision": "other"}, "model revision is other, the cluster's is abcdef0123"),
        ({"model": "e5"}, "model is e5, the cluster's is minilm"),
    ],
)
def test_a_slot_that_is_not_in_service_or_unlike_the_others_is_bad(
    change: dict[str, object], words: str
) -> None:
    settings = replace(SETTINGS, expected_slots="gpu1:0,gpu1:1,gpu2:0")
    rows = slots(GOOD, replace(GOOD, slot="gpu2:0"), replace(GOOD, slot="gpu1:1", **change))  # type: ignore[arg-type]
    part = judge(rows, Pings(NAMES | {"worker0@gpu2"}), settings)["slot gpu1:1"]
    assert not part.ok
    assert words in part.detail


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("resting", "its GPU is resting: too hot; it takes shards again by itself"),
        (
            "condemned",
            "its GPU is condemned: too hot; reset or replace it (docs/gpu-health.md), then on gpu1: ",
        ),
    ],
)
def test_a_slot_whose_gpu_is_in_trouble_says_why_and_what_to_do(state: str, words: str) -> None:
    part = judge(slots(replace(GOOD, state=state, trouble="too hot")))["slot gpu1:0"]
    assert (part.ok, part.trouble) == (False, "too hot")
    assert part.detail.startswith(words)
    gone = judge(slots(replace(GOOD, state=state, trouble="too hot", age=300.0)))["slot gpu1:0"]
    assert (gone.ok, gone.trouble) == (False, ""), "there is nobody to ask"


def test_trouble_that_an_older_worker_left_in_the_row_counts_no_more() -> None:
    assert judge(slots(replace(GOOD, trouble="too hot")))["slot gpu1:0"].ok


def test_a_slot_whose_worker_does_not_answer_celery_is_bad() -> None:
    part = judge(slots(GOOD), Pings(NAMES - {"worker0@gpu1"}))["slot gpu1:0"]
    assert not part.ok
    assert "worker0@gpu1 does not answer" in part.detail


def test_without_redis_a_slot_is_judged_by_its_row() -> None:
    assert judge(slots(GOOD), UNASKED)["slot gpu1:0"].ok


def test_a_removed_slot_is_forgotten_and_one_that_works_unasked_is_bad() -> None:
    gone, extra = replace(GOOD, slot="gpu9:0", age=9_999.0), replace(GOOD, slot="gpu8:0")
    parts = judge(slots(GOOD, replace(GOOD, slot="gpu1:1"), gone, extra))
    assert "slot gpu9:0" not in parts
    assert not parts["slot gpu8:0"].ok
    assert "the inventory has no such slot" in parts["slot gpu8:0"].detail


def test_no_worker_at_all_is_bad() -> None:
    assert [part.ok for part in check.slot_parts(SETTINGS, (), UP, NODES)] == [False]


def test_the_release_of_this_host_is_the_measure() -> None:
    part = judge(slots(GOOD), NODES, replace(SETTINGS, release="0.2.0-cc"))["slot gpu1:0"]
    assert part.detail == "release is 0.1.0-aa, the cluster's is 0.2.0-cc; run site.yml"


def test_the_planner_answers_or_is_judged_by_its_heartbeat() -> None:
    assert check.planner_part(SETTINGS, UP, NODES).ok
    assert not check.planner_part(SETTINGS, UP, Pings(NAMES - {"planner@head"})).ok
    assert check.planner_part(SETTINGS, UP, UNASKED).ok
    assert not check.planner_part(SETTINGS, Recorded(UP.part), UNASKED).ok


def test_the_scheduler_must_have_been_seen_lately() -> None:
    assert check.scheduler_part(SETTINGS, UP).ok
    late = replace(UP, heartbeats={"scheduler": ("head", 600.0)})
    part = check.scheduler_part(SETTINGS, late)
    assert (part.ok, part.detail) == (
        False,
        "heartbeat 10 min ago; on head: systemctl status semantik-scheduler",
    )
    assert "never seen" in check.scheduler_part(SETTINGS, Recorded(UP.part)).detail


def test_every_worker_host_has_a_query_worker() -> None:
    parts = check.query_parts(("gpu1:0", "gpu1:1", "gpu2:0"), UP, NODES)
    assert [(part.name, part.ok) for part in parts] == [("query gpu1", True), ("query gpu2", False)]
    assert parts[1].detail == "no answer; on gpu2: systemctl status semantik-query"


def test_the_migrations_of_this_release_are_known() -> None:
    assert check.expected_migrations()[0] == "0001_initial"


def test_a_probe_that_hangs_is_reported_at_the_deadline_and_others_are_not_held_up() -> None:
    release = threading.Event()
    answers = check.at_once({"slow": release.wait, "good": lambda: 1, "broken": lambda: 1 / 0}, 0.3)
    release.set()
    assert answers["good"] == 1
    assert isinstance(answers["slow"], TimeoutError)
    assert isinstance(answers["broken"], ZeroDivisionError)


def test_a_redis_that_refuses_is_named_with_what_to_do() -> None:
    part = check.redis_part(SETTINGS)
    assert not part.ok
    assert "refused" in part.detail
    assert part.detail.endswith("on the redis host: systemctl status redis-server")


class Server(ThreadingHTTPServer):
    status = 401


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.mark.parametrize(
    ("status", "ok", "words"),
    [
        (401, True, "asks for a password"),
        (200, False, "open without a password"),
        (502, False, "answers 502"),
    ],
)
def test_flower_must_ask_for_a_password(server: Server, status: int, ok: bool, words: str) -> None:
    server.status = status
    part = check.flower_part(replace(SETTINGS, flower_port=server.server_port))
    assert (part.ok, words in part.detail) == (ok, True)


def test_a_flower_that_is_down_is_bad() -> None:
    part = check.flower_part(replace(SETTINGS, flower_port=1))
    assert not part.ok
    assert "systemctl status semantik-flower" in part.detail


def certificate(directory: Path, days: int) -> Path:
    """A self-signed certificate for localhost, key and certificate in one file."""
    path = directory / f"{days}.pem"
    request = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -days {days} -keyout {path} -out {path}.crt"
    )
    subprocess.run(
        request.split(),
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.mark.parametrize(
    ("days", "trusted", "ok", "words"),
    [
        (800, True, True, "asks for a password, certificate for"),
        (3, True, False, "run site.yml, which renews it"),
        (800, False, False, "certificate verify failed"),
    ],
)
def test_nginx_must_show_a_certificate_of_the_cluster_that_lasts(
    server: Server, tmp_path: Path, days: int, trusted: bool, ok: bool, words: str
) -> None:
    pem = certificate(tmp_path, days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    settings = replace(
        SETTINGS, nginx=f"127.0.0.1:{server.server_port}", redis_ca=f"{pem}.crt" if trusted else ""
    )
    part = check.nginx_part(settings)
    assert (part.ok, words in part.detail) == (ok, True), part
