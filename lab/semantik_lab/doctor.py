"""What the lab needs of the machine, checked before anything is made."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from semantik_lab.errors import LabError
from semantik_lab.service import cgroup_mount
from semantik_lab.state import STATE

_FREE_GB = 5
# Program and the Debian package that has it.
_PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "squid": "squid-openssl",
    "cc": "gcc libc6-dev",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "mount": "mount",
    "nsenter": "util-linux",
}
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` is a sentence, `package` what apt-get would install."""

    what: str
    good: bool
    remedy: str = ""
    package: str = ""


def examine() -> list[Finding]:
    """Look at everything, without changing anything."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    findings = [Finding("running as root", os.geteuid() == 0, "run it with sudo")]
    for program, package in _PROGRAMS.items():
        there = shutil.which(program, path=path) is not None
        findings.append(Finding(f"program {program}", there, f"install {package}", package))
    keyring = "debian-archive-keyring"
    findings.append(Finding("Debian's archive keys", _KEYRING.exists(), f"install {keyring}", keyring))
    filesystems = Path("/proc/filesystems").read_text(encoding="utf-8").split()
    module = Path("/lib/modules", os.uname().release, "kernel/fs/overlayfs").exists()
    findings.append(
        Finding(
            "overlayfs",
            "overlay" in filesystems or module,
            "use a kernel that has overlayfs (modprobe overlay)",
        )
    )
    findings.append(_unified())
    existing = next(parent for parent in (STATE, *STATE.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    findings.append(
        Finding(f"{_FREE_GB} GB free below /var/lib", free >= _FREE_GB, f"make room: {free:.1f} GB are free")
    )
    return findings


def require_good(findings: list[Finding]) -> None:
    """Raise a LabError that lists everything missing and the one apt-get line that helps."""
    bad = [finding for finding in findings if not finding.good]
    if not bad:
        return
    message = "this machine cannot run the lab: " + "; ".join(f"{item.what} ({item.remedy})" for item in bad)
    packages = sorted({item.package for item in bad if item.package})
    if packages:
        message += f"\n  apt-get install --no-install-recommends {' '.join(packages)}"
    raise LabError(message)


def _unified() -> Finding:
    try:
        cgroup_mount()
    except LabError as error:
        return Finding("unified control groups", False, str(error))
    return Finding("unified control groups", True)
