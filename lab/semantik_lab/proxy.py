"""The apt proxy of a lab: squid on the bridge, for the lab's hosts and their Debian mirrors only."""

import pwd
import shutil
import socket
from collections.abc import Collection
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

from semantik_lab.errors import LabError
from semantik_lab.network import bridge_address
from semantik_lab.service import Service
from semantik_lab.shell import remove_tree, run, wait_until, write
from semantik_lab.state import CACHE, Paths

_USER = "proxy"
CACHES = CACHE / "squid"

_CONFIGURATION = """\
# Written by lab/lab up; changes are lost.
http_port {address}:{port}
acl hosts src {subnet}
acl mirrors dstdomain {mirrors}
acl web port 80 443
acl tls port 443
acl CONNECT method CONNECT
http_access deny !hosts
http_access deny !web
http_access deny CONNECT !tls
http_access allow mirrors
http_access deny all
{parent}
cache_effective_user {user}
cache_dir ufs {cache} 4096 16 64
cache_mem 32 MB
memory_cache_shared off
maximum_object_size 1 GB
# A package never changes under its name; indexes are asked for again every time.
refresh_pattern -i \\.deb$ 129600 100% 129600
refresh_pattern . 0 20% 0
pid_filename {state}/squid.pid
access_log stdio:{state}/access.log
cache_log {state}/cache.log
coredump_dir {state}
pinger_enable off
visible_hostname {name}
# Nobody waits for open connections: the lab goes down at once.
shutdown_lifetime 1 second
"""


def service(lab: str) -> Service:
    """The proxy's process."""
    return Service(f"{lab}-proxy", Paths(lab).root / "proxy" / "output.log")


def url(subnet: IPv4Network, port: int) -> str:
    """What a host puts into Acquire::http::Proxy."""
    return f"http://{bridge_address(subnet)}:{port}"


def configuration(
    lab: str, subnet: IPv4Network, port: int, mirrors: Collection[str], upstream: str | None
) -> str:
    """Return squid's configuration; `upstream` is the URL of the machine's own proxy."""
    parent = ""
    if upstream:
        parts = urlsplit(upstream)
        parent = f"cache_peer {parts.hostname} parent {parts.port or 3128} 0 no-query default\n"
        parent += "never_direct allow all"
    return _CONFIGURATION.format(
        address=bridge_address(subnet),
        port=port,
        subnet=subnet,
        mirrors=" ".join(sorted(mirrors)),
        parent=parent,
        user=_USER,
        cache=CACHES / lab,
        state=Paths(lab).root / "proxy",
        name=f"semantik-lab-{lab}",
    )


def ensure(lab: str, subnet: IPv4Network, port: int, mirrors: Collection[str], upstream: str | None) -> bool:
    """Start the proxy, or start it again when its configuration changed; returns whether it did."""
    state = Paths(lab).root / "proxy"
    path = state / "squid.conf"
    text = configuration(lab, subnet, port, mirrors, upstream)
    address = str(bridge_address(subnet))
    if service(lab).running():
        if path.exists() and path.read_text(encoding="utf-8") == text and _answers(address, port):
            return False
        stop(lab)
    write(path, text)
    for directory in (state, CACHES / lab):
        directory.mkdir(parents=True, exist_ok=True)
        shutil.chown(directory, _USER, pwd.getpwnam(_USER).pw_gid)
    if _answers(address, port):
        raise LabError(
            f"something else listens on {address}:{port}, often the distribution's own squid: "
            "systemctl disable --now squid, or choose another proxy_port in the topology"
        )
    (state / "squid.pid").unlink(missing_ok=True)
    if not (CACHES / lab / "00").exists():
        run(["squid", "-N", "-z", "-f", str(path)], what="making the proxy's cache")
    service(lab).start(["squid", "-N", "-f", str(path)])
    if not wait_until(lambda: _answers(address, port), 20):
        raise LabError(f"the proxy does not answer on {address}:{port}; it says: {_last_words(state)}")
    return True


def stop(lab: str) -> None:
    """End the proxy; its cache is kept for the next lab of that name."""
    # squid keeps its index in a journal that survives being killed, so there is nothing to wait for.
    service(lab).kill()


def forget(lab: str) -> None:
    """Delete the proxy's cache."""
    remove_tree(CACHES / lab)


def _answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2):
            return True
    except OSError:
        return False


def _last_words(state: Path) -> str:
    lines: list[str] = []
    for name in ("output.log", "cache.log"):
        if (state / name).exists():
            lines += (state / name).read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
    return " | ".join(lines) or "nothing"
