"""Base trees: one minimal Debian per release, made once and shared by all hosts below their own changes."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from semantik_lab.errors import LabError
from semantik_lab.shell import remove_tree, run, step
from semantik_lab.state import CACHE, lock

BASES = CACHE / "base"

# Part of every tree's name: raise it when the customisation below changes.
_RECIPE = 1
_NETWORKD = "systemd-networkd.service"
# apt's own timers would look for mirrors without the proxy and leave the host degraded.
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer")
_APT_OPTIONS = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")


def sources(release: str) -> list[str]:
    """Return apt lines for a release from this machine's own mirrors; none where it has no Debian ones."""
    codename = _os_release().get("VERSION_CODENAME", "")
    listing = run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
        what="reading this machine's apt sources",
    )
    mirrors: dict[str, str] = {}
    for uri, suite, component in (line.split(" ") for line in listing.splitlines() if line.count(" ") == 2):
        if component == "main" and uri.startswith(("http://", "https://")):
            mirrors.setdefault(suite, uri)
    main, security = mirrors.get(codename), mirrors.get(f"{codename}-security")
    if _os_release().get("ID") != "debian" or main is None:
        return []
    lines = [f"deb {main} {suite} main" for suite in (release, f"{release}-updates")]
    return lines + ([f"deb {security} {release}-security main"] if security else [])


def upstream_proxy() -> str | None:
    """Return the proxy through which this machine itself reaches its mirrors, as URL."""
    configured = run(
        ["apt-config", "shell", "proxy", "Acquire::http::Proxy"], what="reading apt's configuration"
    )
    match = re.search(r"proxy='(.+)'", configured)
    return (match[1] if match else None) or os.environ.get("http_proxy") or None


def mirror_hosts(trees: Iterable[Path]) -> set[str]:
    """Return the host names in the apt sources of base trees: what a lab's proxy lets through."""
    found: set[str] = set()
    for tree in trees:
        for file in (tree / "etc/apt").glob("**/*"):
            if file.suffix in (".list", ".sources"):
                found |= set(re.findall(r"https?://([^/:\s\]]+)", file.read_text(encoding="utf-8")))
    return found


def tree_path(release: str, packages: tuple[str, ...]) -> Path:
    """Return where the tree of these packages from these mirrors is or would be."""
    content = json.dumps([_RECIPE, release, sorted(packages), sources(release), _apt_options()])
    return BASES / f"{release}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def ensure(release: str, packages: tuple[str, ...]) -> Path:
    """Return the release's base tree, making it if it is not there; labs that want the same one wait."""
    tree = tree_path(release, packages)
    with lock(lock_path(tree), f"base tree {tree.name}") as descriptor:
        if not tree.exists():
            with step(f"{release}: base tree of {len(packages)} packages"):
                _make(release, packages, tree, descriptor)
    return tree


def lock_path(tree: Path) -> Path:
    """Return the file that whoever makes or removes the tree locks."""
    return BASES / f".{tree.name}.lock"


def _make(release: str, packages: tuple[str, ...], tree: Path, lock_descriptor: int) -> None:
    building = tree.with_name(f".{tree.name}.new")
    remove_tree(building)
    try:
        _bootstrap(release, packages, building, lock_descriptor)
        # Every host gets keys and an id of its own; a shared one would make hosts indistinguishable.
        for key in (building / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        (building / "etc/machine-id").write_text("", encoding="utf-8")
        for action, units in (("enable", ("ssh.service", _NETWORKD)), ("mask", _MASKED)):
            run(
                ["systemctl", f"--root={building}", "--quiet", action, *units],
                what=f"{action} units in {building}",
            )
    except BaseException:
        remove_tree(building)
        raise
    building.rename(tree)


def _bootstrap(release: str, packages: tuple[str, ...], building: Path, lock_descriptor: int) -> None:
    proxy = upstream_proxy()
    run(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--format=directory",
            f"--include={','.join(packages)}",
            # Indexes of translations would only cost the hosts' apt time.
            '--aptopt=Acquire::Languages "none"',
            *(f'--aptopt={name} "false"' for name in _apt_options()),
            release,
            str(building),
            *sources(release),
        ],
        what=f"making the base tree of {release}",
        env={"http_proxy": proxy} if proxy else None,
        # Should this process be killed, mmdebstrap goes on and keeps the lock until it has ended.
        keep=(lock_descriptor,),
    )


def _apt_options() -> list[str]:
    """Checks that this machine's apt leaves out, for mirrors frozen in time; hosts use the same mirrors."""
    found = []
    for name in _APT_OPTIONS:
        answer = run(["apt-config", "shell", "value", f"{name}/b"], what="reading apt's configuration")
        if "value='false'" in answer:
            found.append(name)
    return found


def _os_release() -> dict[str, str]:
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(
            f"/etc/os-release cannot be read: {error.strerror}; the lab needs Debian or a relative of it"
        ) from None
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in text.splitlines())}
