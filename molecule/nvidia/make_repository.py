"""Make a signed, flat apt repository with the names, versions and layout of NVIDIA's, and stand-ins inside.

    make_repository.py DIRECTORY VERSION[!]...

DIRECTORY gets key.asc, the public half of a key made for this, its fingerprint in a file of that name, and
repository.tar with the packages, Packages, Release and InRelease. NVIDIA's packages cannot be fetched where
tests run: here libraries are empty, the kernel module is a few lines that DKMS really builds (but those of a
VERSION with !, which are wrong), and services sleep. What apt, dpkg, DKMS and systemd make of them is real.
Needs dpkg-deb, dpkg-scanpackages and gpg.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

MODULE = """\
#include <linux/module.h>
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Stand-in for NVIDIA's kernel module: it drives nothing");
MODULE_VERSION("{version}");
"""
MISTAKE = "int mistake(void) { return of_another_kernel(); }\n"
DKMS = """\
PACKAGE_NAME="nvidia"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="make -C ${{kernel_source_dir}} M=${{dkms_tree}}/nvidia/{version}/build modules"
AUTOINSTALL="yes"
"""
SERVICE = """\
[Unit]
Description={description} (stand-in)

[Service]
ExecStart=/bin/sleep infinity

[Install]
WantedBy=multi-user.target
"""
#: What DKMS' own helper does for a package of modules when it is configured and removed.
POSTINST = """\
#!/bin/sh
set -e
[ "$1" != configure ] || /usr/lib/dkms/common.postinst nvidia {version} "" "" "$2"
"""
PRERM = """\
#!/bin/sh
set -e
dkms remove -m nvidia -v {version} --all || true
"""
#: Of the driver's version, and what each needs of the same version.
DRIVER: dict[str, list[str]] = {
    "nvidia-kernel-open-dkms": ["nvidia-kernel-support"],
    "nvidia-kernel-dkms": ["nvidia-kernel-support"],
    "nvidia-kernel-support": ["firmware-nvidia-gsp"],
    "firmware-nvidia-gsp": [],
    "nvidia-driver-cuda": ["libcuda1", "libnvidia-ml1", "nvidia-persistenced"],
    "libcuda1": ["libnvidia-ptxjitcompiler1"],
    "libnvidia-ml1": [],
    "libnvidia-cfg1": [],
    "libnvidia-ptxjitcompiler1": [],
    "nvidia-persistenced": ["libnvidia-cfg1"],
    "nvidia-modprobe": [],
    "nvidia-fabricmanager": [],
}
SERVICES = {
    "nvidia-persistenced": "NVIDIA Persistence Daemon",
    "nvidia-fabricmanager": "NVIDIA fabric manager",
}
DCGM, DCGM_VERSION = "datacenter-gpu-manager-4-cuda13", "1:4.4.2-1"


def package(target: Path, name: str, version: str, depends: list[str], files: dict[str, str]) -> None:
    """Build one package; `files` by path, those of DEBIAN among them."""
    with tempfile.TemporaryDirectory() as folder:
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: tests <root@localhost>\n"
            + (f"Depends: {', '.join(depends)}\n" if depends else "")
            + "Section: contrib/kernel\nPriority: optional\nDescription: stand-in\n"
        )
        for path, content in {"DEBIAN/control": control, **files}.items():
            place = Path(folder, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, encoding="utf-8")
            place.chmod(0o755 if content.startswith("#!") else 0o644)
        built = target / f"{name}_{version.rpartition(':')[2]}_amd64.deb"
        subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", folder, str(built)], check=True, capture_output=True
        )


def driver(target: Path, version: str, mistake: str = "") -> None:
    """Build all packages of one version of the driver, its module with a `mistake` in its source."""
    whole = f"{version}-1"
    for name, needs in DRIVER.items():
        depends = [f"{other} (= {whole})" for other in needs]
        files = {}
        if name.endswith("-dkms"):
            depends += ["dkms"]
            source = f"usr/src/nvidia-{version}"
            files = {
                f"{source}/dkms.conf": DKMS.format(version=version),
                f"{source}/Makefile": "obj-m := nvidia.o\n",
                f"{source}/nvidia.c": MODULE.format(version=version) + mistake,
                "DEBIAN/postinst": POSTINST.format(version=version),
                "DEBIAN/prerm": PRERM.format(version=version),
            }
        if name in SERVICES:
            files[f"lib/systemd/system/{name}.service"] = SERVICE.format(description=SERVICES[name])
        package(target, name, whole, depends, files)


def index(target: Path, home: Path) -> None:
    """Write Packages, Release and InRelease, signed with the key in `home`."""
    listed = subprocess.run(
        ["dpkg-scanpackages", "--multiversion", "."], cwd=target, check=True, capture_output=True
    ).stdout
    (target / "Packages").write_bytes(listed)
    now = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S UTC")
    digest = hashlib.sha256(listed).hexdigest()
    (target / "Release").write_text(
        f"Origin: NVIDIA\nLabel: NVIDIA CUDA\nArchitectures: amd64\nDate: {now}\nSHA256:\n"
        f" {digest} {len(listed)} Packages\n",
        encoding="utf-8",
    )
    gpg(home, "--clearsign", "--output", str(target / "InRelease"), str(target / "Release"))


def gpg(home: Path, *arguments: str) -> bytes:
    """Run gpg with a key ring of its own."""
    command = ["gpg", "--homedir", str(home), "--batch", "--yes", "--quiet", "--pinentry-mode", "loopback"]
    return subprocess.run(
        [*command, "--passphrase", "", *arguments], check=True, stdout=subprocess.PIPE
    ).stdout


def main(folder: Path, versions: list[str]) -> None:
    """Make it all."""
    target = folder / "repository"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        home.chmod(0o700)
        gpg(home, "--quick-generate-key", "Tests of the driver's role", "rsa3072", "sign", "never")
        (folder / "key.asc").write_bytes(gpg(home, "--armor", "--export"))
        listed = gpg(home, "--with-colons", "--list-keys").decode()
        found = re.search(r"^fpr:+([0-9A-F]+):", listed, re.MULTILINE)
        assert found, listed
        (folder / "fingerprint").write_text(found[1], encoding="ascii")
        for version in versions:
            driver(target, version.rstrip("!"), MISTAKE if version.endswith("!") else "")
        unit = {"lib/systemd/system/nvidia-dcgm.service": SERVICE.format(description="NVIDIA DCGM")}
        package(target, DCGM, DCGM_VERSION, [], unit)
        index(target, home)
        shutil.make_archive(str(target), "tar", target)
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]), sys.argv[2:])
