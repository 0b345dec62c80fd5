"""Faults of workers and their hosts: a context each, which strikes, and has undone all when it is left.

`strike` is what the rest of the harness calls. What a fault yields goes into the log.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from chaos.cluster import PATIENCE, Cluster, kill, send, wait, worker
from chaos.kinds import ChaosError
from chaos.schedule import Fault

Note = dict[str, Any]
Context = AbstractContextManager[Note]
_FAULTS: dict[str, Callable[[Cluster, Fault], Context]] = {}
_OOM_BYTES = 4 << 20
_DROPIN = "/run/systemd/system/semantik-worker@.service.d/95-chaos-clock.conf"
_CLOCK = """[Service]
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1
Environment=FAKETIME=+3600 FAKETIME_DONT_FAKE_MONOTONIC=1
"""


def fault(name: str) -> Callable[[Callable[[Cluster, Fault], Iterator[Note]]], Callable[..., Context]]:
    """Register a generator as the fault of that kind."""

    def register(generator: Callable[[Cluster, Fault], Iterator[Note]]) -> Callable[..., Context]:
        context = contextmanager(generator)
        _FAULTS[name] = context
        return context

    return register


def strike(cluster: Cluster, planned: Fault) -> Context:
    """Return the context of a planned fault."""
    from chaos import services  # noqa: F401 (registers the other half)

    return _FAULTS[planned.kind](cluster, planned)


def known() -> set[str]:
    """Return the kinds that there is code for."""
    from chaos import services  # noqa: F401

    return set(_FAULTS)


# --- processes ---


def _unit(planned: Fault) -> tuple[str, str]:
    host, _, number = planned.target.partition(":")
    return host, worker(number)


def _child(cluster: Cluster, planned: Fault) -> int:
    """Return a worker's child; a slot that just starts is waited for."""
    found: list[int] = []

    def there() -> bool:
        found[:] = cluster.children(planned.target)
        return bool(found)

    if not wait(there, 60, 0.25):
        raise ChaosError(f"{planned.target} has no child process")
    return found[planned.choice % len(found)]


def _child_dies(cluster: Cluster, planned: Fault, number: int) -> Iterator[Note]:
    pid = _child(cluster, planned)
    send(pid, number)
    yield {"pid": pid}
    wait(lambda: bool(set(cluster.children(planned.target)) - {pid}), PATIENCE, 0.1)


@fault("child_kill")
def child_kill(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    yield from _child_dies(cluster, planned, signal.SIGKILL)


@fault("child_segv")
def child_segv(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    yield from _child_dies(cluster, planned, signal.SIGSEGV)


@fault("child_oom")
def child_oom(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    pid = _child(cluster, planned)
    limit = _OldLimit(cluster, planned) if _OldLimit.there() else _Limit(cluster, planned)
    limit.set(pid)
    try:
        killed = wait(lambda: pid not in cluster.children(planned.target), 30, 0.1)
    finally:
        limit.lift()
    if not killed:
        raise ChaosError(f"the child of {planned.target} did not run out of memory within 30 s")
    yield {"pid": pid}
    wait(lambda: bool(set(cluster.children(planned.target)) - {pid}), PATIENCE, 0.1)


class _Limit:
    """The unit's own limit of memory, lowered below what its child holds."""

    def __init__(self, cluster: Cluster, planned: Fault) -> None:
        host, unit = _unit(planned)
        group = cluster.control_group(host, unit)
        if group is None or not (group / "memory.max").exists():
            raise ChaosError(f"no control group limits the memory of {planned.target}")
        self._file = group / "memory.max"
        self._before = self._file.read_text()

    def set(self, pid: int) -> None:
        """Lower it. The kernel frees what it can, then kills the largest process, which is the child."""
        self._file.write_text(str(256 << 20))

    def lift(self) -> None:
        """Raise it to what it was."""
        with suppress(OSError):
            self._file.write_text(self._before)


class _OldLimit:
    """A group of the old memory controller: what the child takes from now on counts, and soon is too much."""

    MOUNT = Path("/sys/fs/cgroup/memory/semantiklab.slice")

    def __init__(self, cluster: Cluster, planned: Fault) -> None:
        host = planned.target.partition(":")[0]
        self._group = self.MOUNT / cluster.node(host).service.unit / "chaos-oom"

    @classmethod
    def there(cls) -> bool:
        """Whether the machine has the controller on the old hierarchy."""
        return (cls.MOUNT / "memory.limit_in_bytes").exists()

    def set(self, pid: int) -> None:
        """Move the child into the group."""
        self._group.mkdir(exist_ok=True)
        (self._group / "memory.limit_in_bytes").write_text(str(_OOM_BYTES))
        (self._group / "cgroup.procs").write_text(str(pid))

    def lift(self) -> None:
        """Let go of who is still in it, and remove it."""
        with suppress(OSError):
            for pid in (self._group / "cgroup.procs").read_text().split():
                (self._group.parent / "cgroup.procs").write_text(pid)
        wait(self._removed, 5)

    def _removed(self) -> bool:
        with suppress(OSError):
            self._group.rmdir()
        return not self._group.exists()


@fault("parent_kill")
def parent_kill(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    host, unit = _unit(planned)
    pids = cluster.processes(host, unit)
    yield {"pid": kill(pids[:1])}
    cluster.await_active(host, unit, pids)


@fault("unit_restart")
def unit_restart(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    host, unit = _unit(planned)
    cluster.shell(host, f"systemctl restart {unit}", seconds=PATIENCE)
    yield {}
    cluster.await_active(host, unit)


@fault("unit_stop")
def unit_stop(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    host, unit = _unit(planned)
    try:
        cluster.shell(host, f"systemctl stop {unit}", seconds=PATIENCE)
        yield {}
    finally:
        cluster.shell(host, f"systemctl start {unit}", seconds=PATIENCE)


@fault("freeze")
def freeze(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    pid = _child(cluster, planned)
    send(pid, signal.SIGSTOP)
    try:
        yield {"pid": pid}
    finally:
        send(pid, signal.SIGCONT)


# --- hosts ---


@fault("host_power")
def host_power(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    try:
        cluster.cut_power(planned.target)
        yield {}
    finally:
        cluster.boot([planned.target])


def _cut(cluster: Cluster, planned: Fault, ports: str) -> Iterator[Note]:
    head = cluster.node(cluster.head).address
    # Dropped, not refused: what a pulled cable looks like. Both ways, so that nothing sent before arrives.
    hook = "type filter hook {way} priority -10; ip {end}addr {head} tcp {end}port {{ {ports} }} drop;"
    rules = "table inet chaos {\n"
    for way, end in (("output", "d"), ("input", "s")):
        rules += f" chain {way} {{ {hook.format(way=way, end=end, head=head, ports=ports)} }}\n"
    try:
        cluster.shell(planned.target, f"nft -f - <<'END'\n{rules}}}\nEND")
        yield {"ports": ports}
    finally:
        mend_network(cluster, planned.target)


def mend_network(cluster: Cluster, host: str) -> None:
    """Take the rules away that cut a host off."""
    cluster.shell(
        host, "nft list table inet chaos >/dev/null 2>&1 && nft delete table inet chaos", check=False
    )


@fault("cut_redis")
def cut_redis(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    yield from _cut(cluster, planned, "6379")


@fault("cut_postgresql")
def cut_postgresql(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    yield from _cut(cluster, planned, "5432")


@fault("cut_both")
def cut_both(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    yield from _cut(cluster, planned, "5432, 6379")


@fault("parser_kill")
def parser_kill(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    slice_ = cluster.node(planned.target).service.cgroup / "machine" / "payload" / "system.slice"
    units = [group.name for group in slice_.glob("semantik-parser@*.service")]
    yield {"killed": len(kill([pid for unit in units for pid in cluster.processes(planned.target, unit)]))}


@fault("clock")
def clock(cluster: Cluster, planned: Fault) -> Iterator[Note]:
    host = planned.target
    restart = f"systemctl daemon-reload && systemctl restart {_workers(cluster, host)}"
    try:
        cluster.shell(host, f"mkdir -p {Path(_DROPIN).parent} && printf '{_CLOCK}' >{_DROPIN}")
        cluster.shell(host, restart, seconds=PATIENCE)
        pid = cluster.processes(host, worker(0))[0]
        yield {"ahead": "libfaketime" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")}
    finally:
        cluster.shell(host, f"rm -f {_DROPIN} && {restart}", seconds=PATIENCE)


def _workers(cluster: Cluster, host: str) -> str:
    return " ".join(worker(slot.partition(":")[2]) for slot in cluster.slots_of(host))


def heal_workers(cluster: Cluster) -> None:
    """Undo all that faults can have left on hosts of workers, whoever was cut off while he did it."""
    off = [host for host in cluster.workers if not cluster.up(host)]
    if off:
        cluster.boot(off)
    for host in cluster.workers:
        mend_network(cluster, host)
        for slot in cluster.slots_of(host):
            for pid in cluster.processes(host, worker(slot.partition(":")[2])):
                send(pid, signal.SIGCONT)
            if _OldLimit.there():
                _OldLimit(cluster, Fault(0, "child_oom", slot, 0, 0, 0, False)).lift()
        if cluster.shell(host, f"test ! -e {_DROPIN} || echo ahead"):
            cluster.shell(host, f"rm -f {_DROPIN}; systemctl daemon-reload")
            cluster.shell(host, f"systemctl restart {_workers(cluster, host)}", seconds=PATIENCE)
        cluster.shell(host, f"systemctl start {_workers(cluster, host)}", seconds=PATIENCE)
