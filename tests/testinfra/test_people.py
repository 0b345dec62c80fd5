"""Who may read what on a host, and who may use the `semantik` command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clusters import Cluster, Operator

OUTSIDER = "semantik-outsider"


@pytest.fixture
def outsider(cluster: Cluster) -> Iterator[str]:
    """Return a person with an account on the control host and no group of ours."""
    host = cluster.control
    host.check_output(f"id {OUTSIDER} >/dev/null 2>&1 || useradd --create-home {OUTSIDER}")
    yield OUTSIDER
    host.check_output(f"userdel --force --remove {OUTSIDER} 2>/dev/null")


def test_member_of_the_group_needs_no_sudo(operator: Operator) -> None:
    assert isinstance(operator.json("jobs"), (list, dict))


def test_others_are_told_which_group_they_need(cluster: Cluster, outsider: str) -> None:
    result = cluster.control.run(f"runuser -u {outsider} -- semantik jobs")
    assert result.rc == 1
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "group 'semantik'" in result.stderr


def test_secrets_are_files_of_root_alone(cluster: Cluster) -> None:
    for host in cluster.group("control") + cluster.group("workers"):
        assert host.check_output("stat --format '%a %U %G' /etc/semantik/secrets") == "700 root root"
        odd = host.check_output(
            "find /etc/semantik/secrets -type f -not \\( -user root -perm 0600 -o -perm 0400 \\)"
        )
        assert odd == ""


def test_operators_secrets_are_readable_by_the_group_alone(cluster: Cluster) -> None:
    directory = "/etc/semantik/operator"
    assert cluster.control.check_output(f"stat --format '%a %U %G' {directory}") == "750 root semantik"
    listed = cluster.control.check_output(f"stat --format '%a %U %G' {directory}/*").splitlines()
    assert set(listed) == {"640 root semantik"}


def test_no_secret_is_in_an_environment_file_or_on_a_command_line(cluster: Cluster) -> None:
    for name in cluster.names("all"):
        host = cluster.host(name)
        secrets = host.check_output("find /etc/semantik -path '*/secrets/*' -type f -exec cat {} +").split()
        environment = host.check_output("cat /etc/semantik/*.env")
        commands = host.check_output("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' || test $? -eq 1")
        long = [secret for secret in secrets if len(secret) > 12]
        assert long, f"{name}: no secret to look for"
        for secret in long:
            assert secret not in environment, f"{name}: a secret is in /etc/semantik/*.env"
            assert secret not in commands, f"{name}: a secret is on a command line"


def test_private_keys_are_readable_by_their_service_alone(cluster: Cluster) -> None:
    for group, directory, owners in (
        ("redis", "/etc/redis/tls", {"redis", "root"}),
        ("postgresql", "/etc/postgresql/tls", {"postgres", "root"}),
        ("control", "/etc/nginx/tls", {"root", "www-data"}),
    ):
        host = cluster.group(group)[0]
        keys = host.check_output(f"find {directory} -name '*.key' -printf '%m %u %p\\n'").splitlines()
        assert keys, f"no private key in {directory}"
        for line in keys:
            mode, owner, _ = line.split()
            assert int(mode, 8) & 0o007 == 0 and owner in owners, line
