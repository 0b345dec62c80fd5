"""Decide which builds of torch the drivers and GPUs of the workers serve, and say in one line what to change.

Nothing is refused on a guess: what no table of `torch_tables` knows is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch_hosts import NEWEST, Host
from torch_tables import (
    EXPERIMENTAL,
    FAMILY_DRIVERS,
    FIRST_BRANCH,
    LAST_BRANCH_BELOW,
    TOOLKIT_DRIVERS,
    Version,
    builds,
    cuda_of_build,
    text,
    version,
)


@dataclass
class Report:
    """Lines about a build: what refuses it, what may go wrong, and what is only good to know."""

    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Obstacle:
    """Why a host cannot use a build; `driver` is the oldest that would help, empty when none does."""

    what: str
    driver: Version = ()


def driver_text(value: Version) -> str:
    """Write a driver's version as NVIDIA does: 550.163.01."""
    return ".".join([str(value[0]), *(f"{part:02d}" for part in value[1:] if part != NEWEST)])


def serves(host: Host) -> str:
    """Say which CUDA a host's driver serves."""
    newest = max((cuda for cuda, driver in TOOLKIT_DRIVERS.items() if driver <= host.number), default=())
    family = max((major for major, driver in FAMILY_DRIVERS.items() if driver <= host.number), default=0)
    if not family:
        return "serves no CUDA that torch is built for"
    if not newest or newest[0] < family:
        return f"serves CUDA {family}.x by minor version compatibility"
    return f"serves CUDA up to {text(newest)} ({family}.x by minor version compatibility)"


def obstacles(host: Host, torch: str, build: str, more: Mapping[str, str]) -> list[Obstacle]:
    """Return why `host` cannot use a build of torch; empty where nothing is known against it."""
    wheel = f"torch {torch}+{build}"
    if build == "cpu":
        asks = host.device == "cuda" and host.computes
        return [Obstacle(f"{wheel} computes on no GPU and worker_device is cuda")] if asks else []
    if not host.computes:
        return []
    found = []
    cuda, driver = cuda_of_build(build), host.number
    least = FAMILY_DRIVERS.get(cuda[0], ()) if cuda else ()
    if driver and driver < least:
        needs = f"{wheel} needs driver {driver_text(least)} or newer"
        found.append(Obstacle(f"{host.named} {serves(host)} and {needs}", least))
    own = TOOLKIT_DRIVERS.get(cuda, ())
    compiled = builds(torch, host.machine, more).get(build)
    gpus = [gpu for gpu in dict.fromkeys(host.computes) if gpu.capability]
    if compiled is None or not gpus:
        return found
    foreign = [gpu for gpu in gpus if not compiled.run_on(gpu.capability)]
    if lacking := [str(gpu) for gpu in foreign if not compiled.compile_for(gpu.capability)]:
        found.append(Obstacle(f"{wheel} has no kernels for {' and '.join(lacking)}, only for {compiled}"))
    elif foreign and driver and driver < own:
        # Minor version compatibility does not reach PTX.
        needs = f"driver {driver_text(own)} or newer to compile its PTX for {foreign[0]}"
        found.append(Obstacle(f"{host.named} {serves(host)} and {wheel} needs {needs}", own))
    return found


def unfit_driver(host: Host) -> str:
    """Say that a driver that is to come does not know a GPU of its host; empty when it does."""
    # One that runs shows the GPUs that it knows.
    for gpu in host.computes if host.planned else ():
        first = FIRST_BRANCH.get(gpu.capability, 0)
        if host.number[0] < first:
            return f"{host.named} does not know {gpu}: set {host.way_to((first,), str(first))}"
        if gpu.capability and gpu.capability < LAST_BRANCH_BELOW[0] and host.number[0] > LAST_BRANCH_BELOW[1]:
            return f"{host.named} no longer knows {gpu}: set nvidia_driver_version to {LAST_BRANCH_BELOW[1]}"
    return ""


def known(torch: str, hosts: Sequence[Host], more: Mapping[str, str]) -> list[str]:
    """Return the builds that exist for every machine among the hosts with GPUs, newest first."""
    machines = {host.machine for host in hosts if host.computes}
    tables = [set(builds(torch, machine, more)) for machine in sorted(machines)]
    return sorted(set.intersection(*tables), key=cuda_of_build, reverse=True) if tables else []


def candidates(torch: str, hosts: Sequence[Host], more: Mapping[str, str]) -> list[str]:
    """Return the builds to choose from, newest first: experimental ones only if the inventory lists them."""
    apart = EXPERIMENTAL.get(text(version(torch)[:2]), frozenset()) - set(more)
    return [build for build in known(torch, hosts, more) if build not in apart]


def choose(torch: str, hosts: Sequence[Host], more: Mapping[str, str], before: str = "") -> str:
    """Return the newest build that every host's driver and GPUs serve, `cpu` where none has a GPU to use.

    Where no build serves all, the one that serves most, so that its obstacles can be named; where no build of
    this release is known, an empty string. `before` is what the cluster has, for a run that sees a part of
    its hosts: it stays if those hosts can use it.
    """
    if not any(host.computes for host in hosts):
        return before or "cpu"
    refusing = {
        build: sum(bool(obstacles(host, torch, build, more)) for host in hosts)
        for build in candidates(torch, hosts, more)
    }
    if before and not any(obstacles(host, torch, before, more) for host in hosts):
        return before
    return min(refusing, key=lambda build: refusing[build], default="")


def remedy(
    host: Host,
    found: Sequence[Obstacle],
    torch: str,
    build: str,
    hosts: Sequence[Host],
    more: Mapping[str, str],
) -> str:
    """Say what to change so that a host's obstacles go away."""
    choice = candidates(torch, hosts, more)
    fitting = [each for each in choice if not any(obstacles(other, torch, each, more) for other in hosts)]
    drivers = [obstacle.driver for obstacle in found]
    ways = [f"wheelhouse_torch to {fitting[0]}"] if fitting else []
    if all(drivers):
        ways.append(host.way_to(max(drivers), driver_text(max(drivers))))
    if ways:
        return "set " + ", or ".join(ways)
    if build == "cpu":
        return "set wheelhouse_torch to auto, or worker_device to cpu"
    # Kernels for all, if only the drivers were newer.
    for each in choice:
        lacking = {other: obstacles(other, torch, each, more) for other in hosts}
        needed = [obstacle.driver for behind in lacking.values() for obstacle in behind]
        if needed and all(needed):
            behind = [other for other, why in lacking.items() if why]
            way = behind[0].way_to(max(needed), driver_text(max(needed)))
            return f"set wheelhouse_torch to {each} and {way} on {', '.join(other.name for other in behind)}"
    if not choice:
        return "name the build that fits in wheelhouse_torch"
    return f"no build of torch {torch} has kernels for every GPU of the workers: take some out of that group"


def idle(host: Host, torch: str) -> str:
    """Say which GPUs the CPU's build leaves unused."""
    gpus = " and ".join(dict.fromkeys(map(str, host.computes)))
    return f"{host.name}: torch {torch}+cpu leaves {gpus} idle"


def doubts(host: Host, torch: str, build: str, more: Mapping[str, str]) -> Report:
    """Return what speaks neither for nor against a build on a host: what is unknown, what has a catch."""
    report = Report()
    wheel, compiled = f"torch {torch}+{build}", builds(torch, host.machine, more).get(build)
    for gpu in host.gpus if host.shows and host.device != "cpu" else ():
        if not gpu.shown:
            known_from = FIRST_BRANCH.get(gpu.capability, 0)
            hint = f"; it needs {known_from} or newer" if known_from else ""
            report.warnings.append(f"{host.name}: driver {host.driver} does not show {gpu}{hint}")
    if not host.computes:
        return report
    if build == "cpu":
        report.warnings.append(f"{idle(host, torch)}: set wheelhouse_torch to auto to use it")
        return report
    cuda = cuda_of_build(build)
    own, least = TOOLKIT_DRIVERS.get(cuda, ()), FAMILY_DRIVERS.get(cuda[0], ()) if cuda else ()
    if not least:
        report.warnings.append(f"{host.name}: which driver {wheel} needs is not known here")
    elif not host.number:
        needs = f"{wheel} needs {driver_text(least)} or newer"
        report.warnings.append(
            f"{host.name}: no driver answers and nvidia_driver_version names none; {needs}"
        )
    elif least <= host.number < own:
        limit = f"what must be compiled for the GPU at run time (PTX) needs {driver_text(own)} or newer"
        report.notes.append(f"{host.name}: {host.named} runs {wheel} by minor version compatibility; {limit}")
    if compiled is None:
        report.warnings.append(
            f"{host.name}: which GPUs {wheel} has kernels for is not known here; "
            "wheelhouse_torch_architectures can say it"
        )
    report.warnings += [
        f"{host.name}: the compute capability of {gpu} is not known here, so its kernels are not checked"
        for gpu in dict.fromkeys(host.computes)
        if not gpu.capability
    ]
    return report


def judge(torch: str, build: str, hosts: Sequence[Host], more: Mapping[str, str]) -> Report:
    """Return what stands against a build of torch on these hosts, a line each with what to change."""
    report = Report()
    for host in hosts:
        # What a distribution is expected to have may have changed: no ground to refuse.
        against = report.warnings if host.expected else report.refusals
        if unfit := unfit_driver(host):
            against.append(f"{host.name}: {unfit}")
        elif found := obstacles(host, torch, build, more):
            reasons = ", and ".join(obstacle.what for obstacle in found)
            line = f"{host.name}: {reasons}: {remedy(host, found, torch, build, hosts, more)}"
            (against if all(obstacle.driver for obstacle in found) else report.refusals).append(line)
        aside = doubts(host, torch, build, more)
        report.warnings += aside.warnings
        report.notes += aside.notes
    return report


def refused(
    torch: str, hosts: Sequence[Host], more: Mapping[str, str], chosen: str = ""
) -> dict[str, list[str]]:
    """Return why these hosts cannot use a build, for each that they cannot.

    With `chosen`, a build for CUDA that was chosen for them, the one for the CPU is no substitute.
    """
    named = {f"cu{cuda[0]}{cuda[1]}" for cuda in TOOLKIT_DRIVERS} | set(known(torch, hosts, more)) | {"cpu"}
    judged = {build: judge(torch, build, hosts, more).refusals for build in sorted(named)}
    if cuda_of_build(chosen):
        judged["cpu"] += [
            f"{idle(host, torch)}: set wheelhouse_torch to cpu if that is wanted"
            for host in hosts
            if host.computes
        ]
    return {build: lines for build, lines in judged.items() if lines}
