"""The module that finds units running with older files than those on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import stale_units

#: 2026-11-25 09:04:20.052009 UTC
STARTED = 1_795_597_460.052009
SHOWN = """ActiveState=active
ExecMainStartTimestamp=Wed 2026-11-25 09:04:20.052009 UTC
InactiveExitTimestamp=Wed 2026-11-25 09:00:00.000001 UTC
FragmentPath={unit}
DropInPaths={dropin}
EnvironmentFiles=/etc/semantik/semantik.env (ignore_errors=no)
EnvironmentFiles=/etc/semantik/secrets/source.env (ignore_errors=yes)
"""


def shown(tmp_path: Path) -> dict[str, list[str]]:
    """Return the properties of a unit whose files are in `tmp_path`."""
    unit = tmp_path / "semantik-worker@.service"
    unit.write_text("[Service]\nLoadCredential=redis_password:/etc/semantik/secrets/worker_redis_password\n")
    dropin = tmp_path / "50-site.conf"
    dropin.write_text("[Service]\nMemoryMax=4G\n")
    properties: dict[str, list[str]] = stale_units.parse(SHOWN.format(unit=unit, dropin=dropin))
    return properties


def test_everything_that_a_unit_reads_counts(tmp_path: Path) -> None:
    assert stale_units.files(shown(tmp_path)) == [
        str(tmp_path / "semantik-worker@.service"),
        str(tmp_path / "50-site.conf"),
        "/etc/semantik/secrets/worker_redis_password",
        "/etc/semantik/semantik.env",
        "/etc/semantik/secrets/source.env",
    ]


def test_the_process_counts_rather_than_the_unit(tmp_path: Path) -> None:
    assert stale_units.started(shown(tmp_path)) == pytest.approx(STARTED)


def test_a_socket_has_no_process(tmp_path: Path) -> None:
    properties = shown(tmp_path)
    del properties["ExecMainStartTimestamp"]
    assert stale_units.started(properties) == pytest.approx(STARTED - 260.052008)


@pytest.mark.parametrize("state", ["inactive", "failed"])
def test_what_does_not_run_is_not_stale(tmp_path: Path, state: str) -> None:
    assert stale_units.started({**shown(tmp_path), "ActiveState": [state]}) is None


def test_a_file_written_since_is_named_and_a_missing_one_is_none(tmp_path: Path) -> None:
    file = tmp_path / "semantik.env"
    file.write_text("A=1\n")
    written = file.stat().st_ctime
    paths = [str(tmp_path / "missing"), str(file)]
    assert stale_units.changed_since(written + 1, paths) is None
    assert stale_units.changed_since(written - 1, paths) == str(file)


def test_an_old_modification_time_does_not_hide_a_change(tmp_path: Path) -> None:
    file = tmp_path / "copied"
    file.write_text("A=1\n")
    os.utime(file, (0, 0))
    assert stale_units.changed_since(1_000_000_000, [str(file)]) == str(file)


def test_a_link_counts_itself(tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to("releases/gone")
    assert stale_units.changed_since(1_000_000_000, [str(link)]) == str(link)
