"""Is every part of the cluster there and as it should be? One `Part` each, all asked at once.

Nothing here waits for a part that does not answer: each probe runs in a thread of its own, and what is not
back at the deadline is reported as such.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from semantik.exceptions import DatabaseUnavailable, SemantikError
from semantik.settings import Settings

#: Seconds until a probe that has not answered is reported; within, each probe has its own shorter time-out.
DEADLINE = 12.0
PROBE_SECONDS = 4.0
#: Redis refuses writes when it is full (noeviction), so nearly full is already a fault.
REDIS_FULL = 0.9
CERTIFICATE_DAYS = 7
#: What to do about a GPU in trouble, by the state of its slot; docs/gpu-health.md says more.
REMEDIES = {
    "resting": "it takes shards again by itself; see to its cooling and power",
    "condemned": "reset or replace it (docs/gpu-health.md), then on {host}: systemctl restart {unit}",
}


@dataclass(frozen=True)
class Part:
    """One part of the cluster. `detail` says what was found and, where it is bad, what to do."""

    name: str
    ok: bool
    detail: str
    #: Of a slot whose GPU is in trouble: what the GPU has. Its worker runs all the same, and can be asked.
    trouble: str = ""


@dataclass(frozen=True)
class Slot:
    """A slot's row, its ages by the database's clock."""

    slot: str
    state: str
    device: str
    gpu_uuid: str
    model: str
    model_revision: str
    release: str
    age: float  # seconds since it was last seen
    trouble: str = ""  # of its GPU, where the state is `resting` or `condemned`


@dataclass(frozen=True)
class Recorded:
    """What PostgreSQL knows of the cluster."""

    part: Part
    heartbeats: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # name -> host, age in seconds
    slots: Mapping[str, Slot] = field(default_factory=dict)


@dataclass(frozen=True)
class Pings:
    """The Celery nodes that answered, or why none could be asked."""

    nodes: frozenset[str] = frozenset()
    unasked: str = ""


def check(settings: Settings, *, deadline: float = DEADLINE) -> list[Part]:
    """Ask every part and return one Part each, in a fixed order; takes `deadline` seconds at most."""
    expected = expected_slots(settings)
    probes: dict[str, Callable[[], Any]] = {
        "redis": lambda: redis_part(settings),
        "postgresql": lambda: recorded(settings),
        "celery": lambda: ping(_nodes(settings, expected)),
        "flower": lambda: flower_part(settings),
    }
    if settings.nginx:
        probes["nginx"] = lambda: nginx_part(settings)
    answers = at_once(probes, deadline)

    def part(name: str) -> Part:
        answer = answers[name]
        return answer if isinstance(answer, Part) else Part(name, False, _sentence(answer))

    rows = answers["postgresql"]
    if not isinstance(rows, Recorded):
        rows = Recorded(Part("postgresql", False, _sentence(rows)))
    pings = answers["celery"]
    if not isinstance(pings, Pings):
        pings = Pings(unasked=_sentence(pings))
    parts = [part("redis"), rows.part]
    parts.append(planner_part(settings, rows, pings))
    parts.append(scheduler_part(settings, rows))
    parts += query_parts(expected, rows, pings)
    parts += slot_parts(settings, expected, rows, pings)
    parts.append(part("flower"))
    if settings.nginx:
        parts.append(part("nginx"))
    return parts


def at_once(probes: Mapping[str, Callable[[], Any]], deadline: float) -> dict[str, Any]:
    """Run all probes in parallel; each name gets its result, or the exception that says why there is none."""
    results: dict[str, Any] = {}
    arrived = threading.Condition()

    def run(name: str, probe: Callable[[], Any]) -> None:
        result: Any
        try:
            result = probe()
        except Exception as error:  # whatever a part answers belongs into its line of the report
            result = error
        with arrived:
            results[name] = result
            arrived.notify()

    for name, probe in probes.items():
        # Daemons: a probe that hangs in a connect must not keep the command from ending.
        threading.Thread(target=run, args=(name, probe), name=f"check-{name}", daemon=True).start()
    with arrived:
        arrived.wait_for(lambda: len(results) == len(probes), timeout=deadline)
        late = TimeoutError(f"no answer within {deadline:.0f} s")
        return {name: results.get(name, late) for name in probes}


def _sentence(error: object) -> str:
    if isinstance(error, (SemantikError, TimeoutError)) and str(error):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def expected_slots(settings: Settings) -> tuple[str, ...]:
    """Return the slots that the inventory gives the cluster (SEMANTIK_EXPECTED_SLOTS), empty where unset."""
    return tuple(slot.strip() for slot in settings.expected_slots.split(",") if slot.strip())


def worker_node(slot: str) -> str:
    """Return the Celery node name of the worker that serves `slot` (host:n)."""
    host, _, number = slot.partition(":")
    return f"worker{number}@{host}"


def _unit(slot: str) -> str:
    host, _, number = slot.partition(":")
    return f"on {host}: systemctl status semantik-worker@{number}"


def _hosts(slots: Iterable[str]) -> list[str]:
    return sorted({slot.partition(":")[0] for slot in slots})


def _nodes(settings: Settings, expected: Sequence[str]) -> list[str]:
    if not expected:
        return []
    queries = [f"query@{host}" for host in _hosts(expected)]
    return [f"planner@{settings.host}", *queries, *(worker_node(slot) for slot in expected)]


def redis_part(settings: Settings) -> Part:
    """PING and memory. Redis must refuse writes rather than forget a message when it is full."""
    import redis

    from semantik.broker import client

    tls = {"ssl_ca_certs": settings.redis_ca} if settings.redis_ca else {}
    try:
        with client(settings.broker_url, tls, PROBE_SECONDS) as server:
            server.ping()
            started = time.perf_counter()
            server.ping()
            milliseconds = (time.perf_counter() - started) * 1000
            memory: dict[str, Any] = server.info("memory")
            version = server.info("server").get("redis_version", "?")
    except redis.exceptions.NoPermissionError as error:
        return Part("redis", False, f"answers, but refuses INFO to this user ({error}): run site.yml again")
    except redis.exceptions.RedisError as error:
        reason = " ".join(str(error).split())
        return Part("redis", False, f"{reason}; on the redis host: systemctl status redis-server")
    used, limit, policy = (
        memory["used_memory"],
        memory.get("maxmemory", 0),
        memory.get("maxmemory_policy", ""),
    )
    detail = f"{version}, {milliseconds:.1f} ms, {used / 2**20:.0f} MB of {_megabytes(limit)}, {policy}"
    if policy != "noeviction":
        return Part(
            "redis", False, f"{detail}: would drop messages when full; set maxmemory-policy noeviction"
        )
    if limit and used > limit * REDIS_FULL:
        return Part("redis", False, f"{detail}: nearly full; raise redis_memory_max")
    return Part("redis", True, detail)


def _megabytes(limit: int) -> str:
    return f"{limit / 2**20:.0f} MB" if limit else "no limit"


def expected_migrations() -> list[str]:
    """Return the names of the migrations that this release brings, in order."""
    directory = resources.files("semantik.sql").joinpath("migrations")
    return sorted(
        path.name.removesuffix(".sql") for path in directory.iterdir() if path.name.endswith(".sql")
    )


def recorded(settings: Settings) -> Recorded:
    """Read the schema's version, signs of life and slots in one connection."""
    from psycopg.rows import class_row

    from semantik.database import connect, query

    started = time.perf_counter()
    try:
        session = connect(settings, autocommit=True, application_name="semantik check")
    except DatabaseUnavailable as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        return Recorded(
            Part("postgresql", False, f"{reason}; on the postgresql host: systemctl status postgresql")
        )
    with session as connection:
        milliseconds = (time.perf_counter() - started) * 1000
        version = connection.info.server_version
        vector = connection.execute(query("check.vector_version")).fetchone()
        applied = [row[0] for row in connection.execute(query("check.applied"))]
        missing = [name for name in expected_migrations() if name not in applied]
        if missing:
            reason = f"the schema lacks {', '.join(missing)}: run site.yml, which migrates it"
            return Recorded(Part("postgresql", False, reason))
        beats = connection.execute(query("check.heartbeats")).fetchall()
        with connection.cursor(row_factory=class_row(Slot)) as cursor:
            slots = cursor.execute(query("check.slots")).fetchall()
    found = f"{version // 10000}.{version % 10000}, {milliseconds:.0f} ms, schema {applied[-1]}"
    if vector is None:
        part = Part("postgresql", False, f"{found}, no pgvector: run site.yml, which installs it")
    else:
        part = Part("postgresql", True, f"{found}, pgvector {vector[0]}")
    return Recorded(
        part,
        {name: (host, age) for name, host, age in beats},
        {slot.slot: slot for slot in slots},
    )


def ping(nodes: Sequence[str]) -> Pings:
    """Return the Celery nodes that answer a ping; with no `nodes` named, all that answer in time."""
    from semantik.broker import reach
    from semantik.celery_app import app

    reach(app)
    replies = app.control.broadcast(
        "ping",
        reply=True,
        destination=list(nodes) or None,
        timeout=PROBE_SECONDS,
        limit=len(nodes) or None,  # the last answer ends the waiting
    )
    return Pings(frozenset(node for reply in replies or [] for node in reply))


def planner_part(settings: Settings, rows: Recorded, pings: Pings) -> Part:
    """Judge the planner by its answer to a ping; with Redis away, by its heartbeat."""
    host, age = rows.heartbeats.get("planner", (settings.host, None))
    seen = f"heartbeat {_ago(age)}" if age is not None else "no heartbeat"
    node = f"planner@{host}"
    if not pings.unasked:
        if node in pings.nodes:
            return Part("planner", True, f"{node} answers")
        return Part(
            "planner", False, f"{node} does not answer ({seen}); on {host}: systemctl status semantik-planner"
        )
    alive = age is not None and age <= settings.live_seconds
    return Part("planner", alive, f"{node} could not be asked: {pings.unasked}; {seen}")


def scheduler_part(settings: Settings, rows: Recorded) -> Part:
    """Judge the scheduler by its heartbeat: it is no Celery worker."""
    beat = rows.heartbeats.get("scheduler")
    if not rows.part.ok and beat is None:
        return Part("scheduler", False, "unknown without PostgreSQL")
    if beat is None:
        return Part(
            "scheduler", False, "never seen; on the control host: systemctl status semantik-scheduler"
        )
    host, age = beat
    if age > max(settings.live_seconds, 3 * settings.tick_seconds):
        return Part(
            "scheduler", False, f"heartbeat {_ago(age)}; on {host}: systemctl status semantik-scheduler"
        )
    return Part("scheduler", True, f"on {host}, heartbeat {_ago(age)}")


def query_parts(expected: Sequence[str], rows: Recorded, pings: Pings) -> list[Part]:
    """One Part for each worker host: searches are answered there."""
    hosts = set(_hosts(expected or rows.slots))
    hosts |= {node.partition("@")[2] for node in pings.nodes if node.startswith("query@")}
    if not hosts:
        return [Part("query", False, "no worker host is known: searches have no one to embed the question")]
    if pings.unasked:
        return [
            Part(f"query {host}", False, f"could not be asked: {pings.unasked}") for host in sorted(hosts)
        ]
    return [
        Part(f"query {host}", True, f"query@{host} answers")
        if f"query@{host}" in pings.nodes
        else Part(f"query {host}", False, f"no answer; on {host}: systemctl status semantik-query")
        for host in sorted(hosts)
    ]


def slot_parts(settings: Settings, expected: Sequence[str], rows: Recorded, pings: Pings) -> list[Part]:
    """One Part for each slot that the inventory names or that works; a removed slot's old row is no fault."""
    if not rows.slots and not expected:
        lacking = "no worker has registered: run site.yml; a host has none before its reboot, if one pends"
        return [Part("slots", False, lacking)]
    live = [
        slot for slot in rows.slots.values() if slot.age <= settings.live_seconds and slot.state != "stopped"
    ]
    common = {
        "release": settings.release or _most(slot.release for slot in live),
        "model": settings.model or _most(slot.model for slot in live),
        "model_revision": settings.model_revision or _most(slot.model_revision for slot in live),
    }
    parts = []
    for name in sorted({*expected, *rows.slots}):
        slot = rows.slots.get(name)
        if expected and name not in expected:
            if slot in live:
                detail = f"works, but the inventory has no such slot; {_unit(name)}, or run site.yml"
                parts.append(Part(f"slot {name}", False, detail))
            continue
        parts.append(_slot_part(name, slot, settings, common, rows, pings))
    return parts


def _slot_part(
    name: str,
    slot: Slot | None,
    settings: Settings,
    common: Mapping[str, str],
    rows: Recorded,
    pings: Pings,
) -> Part:
    title = f"slot {name}"
    if slot is None:
        unknown = not rows.part.ok
        return Part(title, False, "unknown without PostgreSQL" if unknown else f"never seen; {_unit(name)}")
    if slot.state in ("stopped", "draining", "starting"):
        return Part(title, False, f"{slot.state}, last seen {_ago(slot.age)}; {_unit(name)}")
    if slot.age > settings.live_seconds:
        return Part(title, False, f"{slot.state}, last seen {_ago(slot.age)}; {_unit(name)}")
    if slot.state in REMEDIES:
        trouble = slot.trouble or slot.state
        host, _, number = name.partition(":")
        remedy = REMEDIES[slot.state].format(host=host, unit=f"semantik-worker@{number}")
        return Part(title, False, f"its GPU is {slot.state}: {trouble}; {remedy}", trouble)
    for column, wanted in common.items():
        has = getattr(slot, column)
        if has != wanted:
            what = column.replace("_", " ")
            return Part(title, False, f"{what} is {has or 'none'}, the cluster's is {wanted}; run site.yml")
    if not pings.unasked and worker_node(name) not in pings.nodes:
        return Part(title, False, f"{slot.state}, but {worker_node(name)} does not answer; {_unit(name)}")
    found = [slot.state, slot.device or "no device", f"{slot.model} {slot.model_revision[:8]}"]
    return Part(title, True, ", ".join([*found, f"release {slot.release}"] if slot.release else found))


def _most(values: Iterable[str]) -> str:
    ranked = Counter(values).most_common(1)
    return ranked[0][0] if ranked else ""


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s ago"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago"


def flower_part(settings: Settings) -> Part:
    """Flower must be there, and must refuse whoever brings no password."""
    from http.client import HTTPConnection, HTTPException

    where = f"127.0.0.1:{settings.flower_port}"
    connection = HTTPConnection("127.0.0.1", settings.flower_port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return Part("flower", False, f"{where}: {error}; systemctl status semantik-flower")
    finally:
        connection.close()
    return _locked("flower", where, status)


def nginx_part(settings: Settings) -> Part:
    """The way in from the network: TLS that the cluster's CA vouches for, and Flower's 401 behind it."""
    import ssl
    from http.client import HTTPException, HTTPSConnection

    host, _, port = settings.nginx.partition(":")
    context = ssl.create_default_context(cafile=settings.redis_ca or None)
    connection = HTTPSConnection(host, int(port or 443), timeout=PROBE_SECONDS, context=context)
    try:
        connection.connect()
        certificate: Mapping[str, Any] = connection.sock.getpeercert() or {}
        connection.request("GET", "/")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return Part("nginx", False, f"{settings.nginx}: {error}; on the control host: systemctl status nginx")
    finally:
        connection.close()
    part = _locked("nginx", settings.nginx, status)
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86_400
    if days < CERTIFICATE_DAYS:
        return Part("nginx", False, f"the certificate ends in {days:.0f} days: run site.yml, which renews it")
    return Part("nginx", part.ok, f"{part.detail}, certificate for {days:.0f} days")


def _locked(name: str, where: str, status: int) -> Part:
    if status == 401:
        return Part(name, True, f"{where} asks for a password")
    if status == 200:
        return Part(
            name, False, f"{where} is open without a password: set FLOWER_BASIC_AUTH and run site.yml"
        )
    return Part(name, False, f"{where} answers {status}; journalctl -u semantik-flower")
