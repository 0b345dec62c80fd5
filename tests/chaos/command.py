"""The command: `python -m chaos --seed 7 --faults 20`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from chaos import documents, provision, report, run, schedule, services
from chaos.cluster import Cluster
from chaos.kinds import KINDS, ChaosError
from chaos.log import EventLog
from chaos.reference import provide as reference
from semantik_demo import corpus
from semantik_demo.errors import DemoError

EXIT_INTERRUPTED = 130
BUILD = provision.ROOT / "build"
#: Of lease and reaper interval together, what a recovery may take; and seconds at the product's own leases.
_SHARE, _DEFAULT_MOST = 1.25, 75.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Break a booted cluster by a seeded plan while it embeds, and say what that cost.",
        epilog="Kinds of faults: " + ", ".join(KINDS),
    )
    parser.add_argument("--seed", type=int, default=1, help="of the plan: the same one, the same faults")
    parser.add_argument("--faults", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument("--kinds", default="", metavar="A,B", help="only these kinds")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of documents (default: 1)")
    parser.add_argument("--defaults", action="store_true", help="lease 60 s, reaper interval 10 s")
    parser.add_argument("--keep", action="store_true", help="leave the lab up for the next run")
    parser.add_argument("--fresh", action="store_true", help="provision anew instead of from the snapshot")
    parser.add_argument("--lab", metavar="NAME", help="use this lab, which is up, and leave it as it is")
    parser.add_argument("--secrets", metavar="DIR", type=Path, help="with --lab: what site.yml filled")
    parser.add_argument("--up", action="store_true", help="bring the lab up, provisioned, and end")
    parser.add_argument("--plan", action="store_true", help="print the plan and do nothing")
    parser.add_argument(
        "--heal", action="store_true", help="undo what a run that was killed has left, and end"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says; returns 0 for a run that passed."""
    # A run that is ended undoes its faults, whether by Ctrl-C or by SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = _parser().parse_args(arguments)
    try:
        kinds = schedule.choose(options.kinds)
        if options.plan:
            _print_plan(options, kinds)
            return 0
        return _run(options, kinds)
    except (ChaosError, DemoError) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("chaos: interrupted; every fault is undone", file=sys.stderr)
        return EXIT_INTERRUPTED


def _print_plan(options: argparse.Namespace, kinds: tuple[str, ...]) -> None:
    slots = [f"gpu{host}:{n}" for host in (1, 2) for n in (0, 1)]
    plan = schedule.plan(options.seed, options.faults, slots, lease=_lease(options), kinds=kinds)
    for fault in plan.faults:
        action = plan.jobs.get(fault.number, "")
        beside = "  with the one before" if fault.together else ""
        print(f"{fault!s:<28} hold {fault.hold:>5.1f} s{beside}{'  after: ' + action if action else ''}")


def _lease(options: argparse.Namespace) -> float:
    settings = provision.DEFAULTS if options.defaults else provision.SHORT
    return float(str(settings["SEMANTIK_LEASE_SECONDS"]))


def _run(options: argparse.Namespace, kinds: tuple[str, ...]) -> int:
    if options.heal:
        services.heal(Cluster.open(options.lab or provision.NAME, options.secrets or provision.SECRETS))
        return 0
    if options.lab:
        cluster = provision.equipped(options.lab, options.secrets or provision.SECRETS)
    else:
        cluster = provision.provide(fresh=options.fresh)
    if options.up:
        return 0
    status = _chaos(cluster, options, kinds)
    # A run that failed keeps its lab: what went wrong is in there.
    if not options.lab and not options.keep and status == 0:
        provision.destroy()
    return status


def _chaos(cluster: Cluster, options: argparse.Namespace, kinds: tuple[str, ...]) -> int:
    begun = time.time()
    log = EventLog(BUILD / f"chaos-{options.seed}.log.jsonl")
    if not options.lab:
        settings = provision.DEFAULTS if options.defaults else provision.SHORT
        provision.set_settings(cluster, settings)
    lease, tick = cluster.seconds("SEMANTIK_LEASE_SECONDS", 60), cluster.seconds("SEMANTIK_TICK_SECONDS", 10)
    plan = schedule.plan(options.seed, options.faults, cluster.slots, lease=lease, kinds=kinds)
    run.clean(cluster, lambda line: print(f"chaos: {line}", file=sys.stderr))
    folder, _ = corpus.provide()
    files = documents.provide(folder, cluster.lab.paths.documents / "chaos", options.scale)
    version = provision.digest("app/semantik")
    held = reference(cluster, files, provision.PLACE, log, version)
    most = _DEFAULT_MOST if options.defaults else _SHARE * (lease + tick)
    try:
        verdict = run.Run(cluster, plan, files, held, log, most).go()
    finally:
        services.heal(cluster)
        log.close()
    data = report.record(
        verdict, seed=options.seed, lease_s=lease, tick_s=tick, seconds=round(time.time() - begun),
        command=_replay(options), begun=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
    )  # fmt: skip
    path = BUILD / f"chaos-{options.seed}.json"
    report.save(path, data)
    print("\n".join(report.table(data)))
    print(f"{path.relative_to(provision.ROOT)}, events: {log.path.relative_to(provision.ROOT)}")
    if data["passed"]:
        print(f"chaos: passed, seed {options.seed}, {data['faults']} faults, {data['seconds']} s")
        return 0
    print(f"chaos: FAILED, seed {options.seed}; the same faults again: {_replay(options)}")
    return 1


def _replay(options: argparse.Namespace) -> str:
    more = [f"--kinds {options.kinds}"] if options.kinds else []
    more += [f"--scale {options.scale:g}"] if options.scale != 1.0 else []
    more += ["--defaults"] if options.defaults else []
    chaos = f" CHAOS='{' '.join(more)}'" if more else ""
    return f"make chaos SEED={options.seed} FAULTS={options.faults}{chaos}"
