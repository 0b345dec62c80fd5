"""A lab of the harness's own: made by site.yml once, then started from a snapshot in the time of a boot."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from chaos import disk, services
from chaos.cluster import SETTINGS, Cluster
from chaos.kinds import ChaosError

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "lab" / "lab"
NAME = "chaos"
SUBNET = "10.79.0.0/24"
#: Inventory, secrets and references; a snapshot is of no use without the secrets in here.
PLACE = ROOT / "build" / "chaos"
INVENTORY = PLACE / "inventory"
SECRETS = INVENTORY / ".secrets"
#: What a run at short leases sets; shards last some 6 s each on the lab's share of a CPU.
SHORT = {
    "SEMANTIK_LEASE_SECONDS": 12,
    "SEMANTIK_RENEW_SECONDS": 2,
    "SEMANTIK_TICK_SECONDS": 2,
    "SEMANTIK_LIVE_SECONDS": 12,
    "SEMANTIK_DRAIN_SECONDS": 4,
    "SEMANTIK_SHARD_SECONDS": 6,
    "SEMANTIK_THREADS": 1,
    # Below the hour that a host's clock is ahead: it then takes every message for lost.
    "SEMANTIK_VISIBILITY_SECONDS": 1800,
}
#: The product's own leases, for the runs that show what a user gets.
DEFAULTS = {
    **SHORT,
    "SEMANTIK_LEASE_SECONDS": 60,
    "SEMANTIK_RENEW_SECONDS": 10,
    "SEMANTIK_TICK_SECONDS": 10,
    "SEMANTIK_LIVE_SECONDS": 30,
    "SEMANTIK_DRAIN_SECONDS": 60,
}
#: A changed file of these makes another snapshot.
_SOURCES = ("app/semantik", "roles", "playbooks", "systemd", "requirements", "lab", "pyproject.toml")
_SITE = "/opt/semantik/current/venv/lib/python3*/site-packages"
_DROPIN = "/etc/systemd/system/semantik-worker@.service.d/90-chaos.conf"


def digest(*paths: str) -> str:
    """Return the identity of files of this repository, 8 hexadecimal digits."""
    found = hashlib.sha256(json.dumps(SHORT).encode())
    for base in (ROOT / path for path in paths):
        for path in [base] if base.is_file() else sorted(base.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:8]


def provide(*, fresh: bool) -> Cluster:
    """Bring the harness's own lab up, provisioned; `fresh` makes it anew although there is a snapshot."""
    snapshot, stamp = f"{NAME}-{digest(*_SOURCES)}", PLACE / "lab"
    ours = stamp.read_text(encoding="utf-8") if stamp.exists() else ""
    labs = json.loads(_lab("list", "--json") or "[]")
    if any(lab["name"] == NAME for lab in labs):
        if ours == snapshot and not fresh:
            _lab("start", "--name", NAME)
            return equipped(NAME, SECRETS)
        _lab("destroy", "--name", NAME)
    kept = [name for name in _lab("snapshot").split() if name.startswith(f"{NAME}-")]
    usable = snapshot in kept and SECRETS.exists() and not fresh
    for name in kept:
        if not (usable and name == snapshot):
            _lab("snapshot", "--delete", name)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    up = ["up", "--name", NAME, "--subnet", SUBNET, "--inventory", str(INVENTORY / "hosts.yml")]
    if usable:
        _lab(*up, "--from", snapshot)
    else:
        _lab(*up)
        _provision()
        equip(Cluster.open(NAME, SECRETS))
        _lab("snapshot", "--name", NAME, snapshot)
    stamp.write_text(snapshot, encoding="utf-8")
    return equipped(NAME, SECRETS)


def destroy() -> None:
    """Remove the harness's own lab; its snapshot stays."""
    _lab("destroy", "--name", NAME)


def _lab(*arguments: str) -> str:
    done = subprocess.run([LAB, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise ChaosError(f"lab/lab {' '.join(arguments)} failed (see above)")
    return "" if done.stdout.strip() == "no snapshots" else done.stdout


def _provision() -> None:
    group_vars = INVENTORY / "group_vars"
    if not group_vars.exists():
        group_vars.symlink_to(os.path.relpath(ROOT / "inventories" / "lab" / "group_vars", INVENTORY))
    if SECRETS.exists():
        shutil.rmtree(SECRETS)
    settings = PLACE / "settings.json"
    settings.write_text(json.dumps({"cluster_settings": SHORT}), encoding="utf-8")
    done = subprocess.run(
        ["ansible-playbook", "-i", INVENTORY, "-e", f"@{settings}", ROOT / "site.yml"],
        cwd=ROOT, check=False, stdout=sys.stderr,
    )  # fmt: skip
    if done.returncode != 0:
        raise ChaosError(f"site.yml failed with status {done.returncode} (see above)")


def equipped(name: str, secrets: Path) -> Cluster:
    """Return a lab with all that faults need; the database's own disk lasts until the head is off."""
    cluster = Cluster.open(name, secrets)
    equip(cluster)
    disk.provide(cluster, services.postgresql(cluster))
    return cluster


def equip(cluster: Cluster) -> None:
    """Give the hosts of workers what faults need: libfaketime, and the module that dies of poison."""
    poison = (Path(__file__).parent / "poison.py").read_text(encoding="utf-8")
    for host in cluster.workers:
        line = (
            "test -e /usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
            " || DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends libfaketime"
        )
        cluster.shell(host, line, seconds=300)
        root = cluster.node(host).root
        site = sorted(root.glob("opt/semantik/releases/*/venv/lib/python3*/site-packages"))
        if not site:
            raise ChaosError(f"{host} has no release installed")
        dropin = root / _DROPIN.lstrip("/")
        wanted = "[Service]\nEnvironment=SEMANTIK_IMPORTS=semantik_chaos\n"
        module = [path / "semantik_chaos.py" for path in site]
        if (
            dropin.exists()
            and dropin.read_text() == wanted
            and all(path.exists() and path.read_text(encoding="utf-8") == poison for path in module)
        ):
            continue
        for path in module:
            cluster.shell(host, f"cat >{_inside(root, path)} <<'END'\n{poison}END")
        cluster.shell(host, f"cat >{_DROPIN} <<'END'\n{wanted}END\nsystemctl daemon-reload")
        units = " ".join(f"semantik-worker@{slot.partition(':')[2]}" for slot in cluster.slots_of(host))
        cluster.shell(host, f"systemctl restart {units}", seconds=300)


def _inside(root: Path, path: Path) -> str:
    return f"/{path.relative_to(root)}"


def set_settings(cluster: Cluster, settings: Mapping[str, object]) -> None:
    """Make semantik.env of every host say these, and restart what reads it where it did not."""
    wanted = {name: str(value) for name, value in settings.items()}
    if {name: cluster.settings.get(name) for name in wanted} == wanted:
        return
    for node in cluster.lab.nodes():
        host = node.host.name
        lines = cluster.shell(host, f"cat {SETTINGS}").splitlines()
        kept = [line for line in lines if line.partition("=")[0] not in wanted]
        text = "\n".join([*kept, *(f"{name}={value}" for name, value in wanted.items())])
        cluster.shell(host, f"cat >{SETTINGS} <<'END'\n{text}\nEND")
        units = "'semantik-worker@*' 'semantik-planner*' 'semantik-scheduler*' 'semantik-query*'"
        cluster.shell(host, f"systemctl restart {units}", seconds=300)
    cluster.read_settings()
