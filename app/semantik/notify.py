"""The service manager's notification socket: READY, WATCHDOG and STATUS, as sd_notify(3) sends them."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Send `state` (for example "READY=1") to systemd; return whether anyone was there to hear it.

    Outside a unit, NOTIFY_SOCKET is unset and nothing is sent.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.sendall(state.encode())
    return True
