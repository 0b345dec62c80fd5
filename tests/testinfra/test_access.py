"""What must be refused is: plaintext, unknown users, commands and keys beyond need, missing credentials."""

from __future__ import annotations

from pathlib import Path

import pytest
from clusters import Cluster
from testinfra.host import Host

PYTHON = "/opt/semantik/current/venv/bin/python"
REDIS = """
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry
def connect(**options):
    if options.pop("tls", True):
        options.update(ssl=True, ssl_ca_certs="/etc/semantik/tls/ca.crt")
    return redis.Redis(host={address!r}, port=6379, socket_timeout=5, retry=Retry(NoBackoff(), 0), **options)
"""
FORBIDDEN = (
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG GET *",
    "KEYS *",
    "SET other:key 1",
    "GET other:key",
    "ACL LIST",
    "SHUTDOWN NOSAVE",
    "SCRIPT FLUSH",
)


def from_worker(cluster: Cluster, script: str) -> tuple[int, str]:
    """Run Python on a worker host, where the cluster's clients are; return exit status and output."""
    host = cluster.group("workers")[0]
    result = host.run(f"{PYTHON} -c %s", script)
    return int(result.rc), str(result.stdout + result.stderr)


def from_redis_client(cluster: Cluster, script: str) -> tuple[int, str]:
    """Run Python on a worker host with `connect` at hand, which makes a client of the cluster's Redis."""
    address = cluster.address(cluster.names("redis")[0])
    return from_worker(cluster, REDIS.format(address=address) + script)


def from_here(url: str, *arguments: str) -> str:
    """Run curl on the machine that runs the tests, which reaches the hosts as a browser would."""
    command = "curl --silent --show-error --max-time 20 " + " ".join(["%s"] * (len(arguments) + 1))
    return str(Host.get_host("local://").check_output(command, *arguments, url))


def test_redis_refuses_plaintext(cluster: Cluster) -> None:
    code, output = from_redis_client(cluster, "connect(tls=False).ping()\n")
    assert code != 0
    assert "ConnectionError" in output, output


@pytest.mark.parametrize("login", [None, "default", "semantik_worker", "nobody"])
@pytest.mark.unit("redis-server.service")
def test_redis_refuses_without_the_right_password(cluster: Cluster, login: str | None) -> None:
    options = f"username={login!r}, password='wrong'" if login else ""
    code, output = from_redis_client(
        cluster,
        f"try:\n    connect({options}).ping()\n"
        "except AuthenticationError as error:\n    print(type(error).__name__)\n",
    )
    assert code == 0, output
    assert output.strip() == "AuthenticationError"


@pytest.mark.unit("redis-server.service")
def test_redis_keeps_the_worker_to_its_keys_and_commands(cluster: Cluster) -> None:
    code, output = from_redis_client(
        cluster,
        "password = open('/etc/semantik/secrets/worker_redis_password').read().strip()\n"
        "client = connect(username='semantik_worker', password=password)\n"
        "print(client.ping())\n"
        f"for line in {FORBIDDEN!r}:\n"
        "    try:\n        client.execute_command(*line.split())\n"
        "    except NoPermissionError:\n        continue\n"
        "    print('allowed:', line)\n",
    )
    assert code == 0, output
    assert output.strip() == "True"


@pytest.mark.parametrize(
    ("tls", "expected"),
    [("disable", "no encryption"), ("require", "password authentication failed")],
)
def test_postgresql_refuses(cluster: Cluster, tls: str, expected: str) -> None:
    address = cluster.address(cluster.names("postgresql")[0])
    login = f"host={address} user=semantik_worker password=wrong dbname=semantik"
    code, output = from_worker(
        cluster, f"import psycopg\npsycopg.connect('{login} sslmode={tls} connect_timeout=5')\n"
    )
    assert code != 0
    assert expected in output, output


@pytest.mark.parametrize("port", [80, 5555])
def test_control_host_is_reachable_by_nginx_alone(cluster: Cluster, port: int) -> None:
    address = cluster.address(cluster.names("control")[0])
    code, output = from_worker(
        cluster, f"import socket\nsocket.create_connection(({address!r}, {port}), timeout=5)\n"
    )
    assert code != 0
    assert "ConnectionRefusedError" in output, output


@pytest.mark.unit("semantik-flower.service", "nginx.service")
def test_flower_asks_for_credentials_and_shows_every_worker(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.names("control")[0]
    authority = tmp_path / "ca.crt"
    authority.write_text(cluster.control.check_output("cat /etc/semantik/tls/ca.crt"), encoding="ascii")
    route = ("--cacert", str(authority), "--resolve", f"{name}:443:{cluster.address(name)}")
    status = (*route, "--output", "/dev/null", "--write-out", "%{http_code}")
    secret = cluster.control.check_output("cat /etc/semantik/secrets/flower_basic_auth").strip()
    # Flower alone would answer this one to anybody.
    assert from_here(f"https://{name}/metrics", *status) == "404"
    assert from_here(f"https://{name}/workers", *status) == "401"
    assert from_here(f"https://{name}/workers", *status, "--user", "admin:admin") == "401"
    assert from_here(f"https://{name}/workers", *status, "--user", secret) == "200"
    page = from_here(f"https://{name}/workers?json=1", *route, "--user", secret)
    slots = [f"worker{n}@{worker}" for worker in cluster.names("workers") for n in (0, 1)]
    assert [slot for slot in slots if slot not in page] == [], page
