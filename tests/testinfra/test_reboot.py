"""A worker host that is rebooted comes back with every slot, without anyone's help."""

from __future__ import annotations

import pytest
from clusters import Cluster, Operator, reach, rows, wait_for
from testinfra.host import Host

#: On a file system that a reboot empties.
MARK = "/run/before-the-reboot"


@pytest.mark.unit("semantik-worker@0.service", "semantik-worker@1.service", "semantik-query.service")
def test_worker_host_serves_again_after_a_reboot(cluster: Cluster, operator: Operator) -> None:
    name = cluster.names("workers")[0]
    host = cluster.host(name)
    host.check_output(f"touch {MARK}")
    begun = rows(cluster, "SELECT now()")[0]
    # The connection may end before the command does: the mark, not the exit status, says whether it rebooted.
    reach(host, "systemctl reboot")

    def is_back() -> bool:
        seen = reach(host, f"test ! -e {MARK} && systemctl is-system-running --wait")
        return seen is not None and seen.rc == 0

    wait_for(is_back, 150, f"{name} to come back with all its units", lambda: units(host))
    live = (
        f"SELECT count(*) FROM slots WHERE slot LIKE '{name}:%' AND state IN ('idle', 'busy') "
        f"AND last_seen > timestamptz '{begun}' + interval '3 s'"
    )
    wait_for(lambda: rows(cluster, live) == ["2"], 120, f"both slots of {name} to report")
    operator.run("check", "--gpu")


def units(host: Host) -> str:
    """Return the units that are not as they should be, for the message of a failure."""
    found = reach(
        host, "systemctl list-units --state=failed,activating --no-legend --plain; systemctl list-jobs"
    )
    return "it does not answer" if found is None else str(found.stdout)
