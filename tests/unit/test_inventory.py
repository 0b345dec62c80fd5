"""Broken inventories are refused with a line each, before any host is touched: real runs of site.yml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Template

from semantik.settings import load, read_env_file

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")


def inventory() -> dict[str, Any]:
    """An inventory with nothing wrong, whose hosts do not exist."""
    return {
        "all": {
            "vars": {"cluster_networks": ["192.0.2.0/24"]},
            "children": {
                "redis": {"hosts": {"head": {"ansible_host": "192.0.2.11"}}},
                "postgresql": {"hosts": {"head": {}}},
                "control": {"hosts": {"head": {}}},
                "workers": {
                    "hosts": {"gpu1": {"ansible_host": "192.0.2.21"}, "gpu2": {"ansible_host": "192.0.2.22"}}
                },
            },
        }
    }


class Site:
    """Runs site.yml with an ssh that connects nowhere and leaves a mark when it is asked to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.inventory = directory / "inventory"
        self.touched = directory / "touched"
        self.ssh = directory / "ssh"
        self.ssh.write_text(f"#!/bin/sh\ntouch {self.touched}\nexit 255\n")
        self.ssh.chmod(0o755)

    def run(self, content: dict[str, Any] | None, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the playbook; `content` is the inventory, None for none at all."""
        if content is not None:
            self.inventory.mkdir(exist_ok=True)
            (self.inventory / "hosts.yml").write_text(yaml.safe_dump(content))
        env = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_SSH_EXECUTABLE": str(self.ssh),
        }
        env |= {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCAL_TEMP": str(self.directory / "tmp")}
        return subprocess.run(
            [PLAYBOOK, "-i", self.inventory, "site.yml", *arguments],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def errors(self, content: dict[str, Any] | None, *arguments: str) -> list[str]:
        """Run, assert that nothing was touched, and return the lines that say what is wrong."""
        done = self.run(content, *arguments)
        assert done.returncode != 0, done.stdout
        assert not self.touched.exists(), "a host was connected to"
        assert not (self.inventory / ".secrets").exists(), "secrets were made"
        assert "no host was touched" in done.stdout
        lines = [
            line.removeprefix("[ERROR]: ")
            for line in done.stderr.splitlines()
            if line.startswith("[ERROR]: ")
        ]
        return [line for line in lines if not line.startswith("Task failed")]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_sound_inventory_gets_as_far_as_the_hosts(site: Site) -> None:
    done = site.run(inventory())
    assert site.touched.exists(), done.stdout + done.stderr
    assert "UNREACHABLE" in done.stdout


def test_the_example_gets_as_far_as_the_hosts(site: Site) -> None:
    shutil.copytree(ROOT / "inventories" / "example", site.inventory)
    done = site.run(None)
    assert site.touched.exists(), done.stdout + done.stderr


def test_no_inventory_says_what_to_copy(site: Site) -> None:
    [error] = site.errors(None)
    assert "copy inventories/example to inventories/production" in error


def test_a_missing_group_is_named(site: Site) -> None:
    content = inventory()
    del content["all"]["children"]["postgresql"]
    assert site.errors(content) == ["group 'postgresql' is missing or empty: it needs 1 host"]


def test_every_problem_is_named_in_one_run(site: Site) -> None:
    content = inventory()
    children = content["all"]["children"]
    content["all"]["vars"] |= {
        "redis_memroy_max": "1G",
        "postgresql_max_connections": "many",
        "cluster_settings": {"SEMANTIK_LEASE_SECOND": 5},
        "clusster_operators": ["ann"],
        "postgresql_memory_max": "2 gigabytes",
    }
    children["redis"]["hosts"] = {
        f"redis{number}": {"ansible_host": f"192.0.2.{number}"} for number in (1, 2, 3)
    }
    children["workers"]["hosts"]["gpu2"] = {
        "ansible_host": "198.51.100.22",
        "worker_concurrency": True,
        "nvidia_driver_mig": True,  # `on`, as YAML reads it
    }
    children["workers"]["hosts"]["gpu1.rack2"] = {"ansible_host": "192.0.2.23"}
    children["control"]["hosts"]["head"] = {"ansible_host": "192.0.2.11"}
    errors = site.errors(content)
    for expected in (
        "group 'redis' has 3 hosts: Sentinel is not supported by this release, keep 1 host",
        "redis_memroy_max is not a variable of the role 'redis'; did you mean redis_memory_max? (all hosts)",
        "postgresql_max_connections must be a whole number, not 'many' (all hosts)",
        "postgresql_memory_max must be a size like 512M or 4G, not '2 gigabytes' (all hosts)",
        "clusster_operators is not a variable of this project; did you mean cluster_operators? (all hosts)",
        "worker_concurrency must be a whole number, not True (host gpu2)",
        'nvidia_driver_mig must be text, not True: put it into quotes, as in "on" (host gpu2)',
    ):
        assert expected in errors
    text = "\n".join(errors)
    assert "cluster_settings.SEMANTIK_LEASE_SECOND is not a setting" in text
    assert "did you mean SEMANTIK_LEASE_SECONDS?" in text
    assert "hosts gpu1 and gpu1.rack2 share the short name 'gpu1'" in text
    assert "address 198.51.100.22 is in none of cluster_networks (192.0.2.0/24)" in text
    assert len(errors) == 10


def test_settings_that_the_services_would_refuse_are_refused(site: Site) -> None:
    content = inventory()
    workers = content["all"]["children"]["workers"]["hosts"]
    content["all"]["vars"]["cluster_lease_seconds"] = 12  # renewals follow
    workers["gpu1"]["cluster_settings"] = {"SEMANTIK_RENEW_SECONDS": "soon", "SEMANTIK_TICK_SECONDS": -1}
    workers["gpu2"]["cluster_settings"] = {"SEMANTIK_RENEW_SECONDS": 5}
    assert sorted(site.errors(content)) == [
        "cluster_settings.SEMANTIK_RENEW_SECONDS: SEMANTIK_RENEW_SECONDS='soon' is not a number (float) "
        "(host gpu1)",
        "cluster_settings.SEMANTIK_TICK_SECONDS: SEMANTIK_TICK_SECONDS='-1': a duration must be more than 0 "
        "(host gpu1)",
        "cluster_settings: SEMANTIK_LEASE_SECONDS=12 must be at least three times SEMANTIK_RENEW_SECONDS=5: "
        "one late renewal must not lose a shard (host gpu2)",
    ]


@pytest.mark.parametrize(
    ("lease", "settings", "renew"),
    [
        (60, {}, 10),
        (12, {}, 2),
        (60, {"SEMANTIK_LEASE_SECONDS": 6}, 1),
        (60, {"SEMANTIK_RENEW_SECONDS": 3}, 3),
    ],
)
def test_renewals_follow_the_lease_into_the_file_of_settings(
    lease: int, settings: dict[str, int], renew: float, tmp_path: Path
) -> None:
    template = ROOT / "roles" / "release" / "templates" / "semantik.env.j2"
    text = Template(template.read_text(encoding="utf-8"), trim_blocks=True).render(
        {"cluster_lease_seconds": lease, "cluster_settings": settings, "cluster_chunk_overlap": 32},
        __release_model={"revision": "r", "dim": 384, "max_tokens": 256},
    )
    (tmp_path / "semantik.env").write_text(text)
    assert load(read_env_file(tmp_path / "semantik.env")).renew_seconds == renew


def test_a_setting_that_workers_have_from_elsewhere_says_from_where(site: Site) -> None:
    services = yaml.safe_load((ROOT / "roles/worker/vars/main.yml").read_text(encoding="utf-8"))[
        "__worker_services"
    ]
    (written,) = (service["env"] for service in services if service["name"] == "worker")
    content = inventory()
    content["all"]["vars"]["cluster_settings"] = dict.fromkeys(written, 1)
    errors = site.errors(content)
    assert len(errors) == len(written) > 3
    for name, value in written.items():
        said = f"cluster_settings.{name} would have no effect: set {value.strip('{ }')}"
        assert any(error.startswith(said) for error in errors), (said, errors)


def test_leftover_and_weak_passwords_are_refused(site: Site) -> None:
    content = inventory()
    content["all"]["vars"] |= {
        "cluster_flower_basic_auth": "admin:admin",
        "cluster_settings": {"FLOWER_BASIC_AUTH": "Admin:admin"},
        "somebody_elses": ["x", "guest:guest"],
        "cluster_redis_password_worker": "s3cr3t-word",
        "cluster_redis_password_query": "long-enough-to-be-kept",
        "cluster_redis_password_flower": 123,
        "cluster_redis_password_control": 123456789012,
        "cluster_database_password_worker": "changeme",
    }
    content["all"]["children"]["workers"]["vars"] = {"cluster_flower_basic_auth": "no-colon-in-this-one"}
    text = "\n".join(site.errors(content))
    for expected in (
        "cluster_flower_basic_auth is a well-known default",
        "cluster_settings.FLOWER_BASIC_AUTH is a well-known default",
        "somebody_elses[1] is a well-known default",
        "cluster_redis_password_worker is shorter than 12 characters",
        "cluster_database_password_worker is a well-known default",
        "cluster_redis_password_flower is shorter than 12 characters",
        "cluster_flower_basic_auth must be user:password",
    ):
        assert expected in text
    assert "cluster_redis_password_query" not in text
    assert "cluster_redis_password_control" not in text
    assert "s3cr3t-word" not in text, "a secret was shown"


def test_a_leftover_password_on_the_command_line_is_refused(site: Site) -> None:
    errors = site.errors(inventory(), "-e", "cluster_flower_basic_auth=admin:admin")
    assert errors == [
        "cluster_flower_basic_auth is a well-known default: remove it and a secret is generated, "
        "or keep one of your own in vault (all hosts)"
    ]


def test_a_directory_without_a_model_is_refused(site: Site, tmp_path: Path) -> None:
    content = inventory()
    content["all"]["vars"]["cluster_model_source"] = str(tmp_path)
    [error] = site.errors(content)
    assert error.startswith(f"cluster_model_source: {tmp_path} holds no model (no modules.json)")


def test_required_variables_and_networks(site: Site) -> None:
    content = inventory()
    del content["all"]["vars"]["cluster_networks"]
    [error] = site.errors(content)
    assert error.startswith("cluster_networks is not set: Networks (CIDR)")
    content["all"]["vars"]["cluster_networks"] = ["192.0.2.11/24"]
    assert any("192.0.2.11/24 has host bits set" in error for error in site.errors(content))
    content["all"]["vars"]["cluster_networks"] = "192.0.2.0/24"
    assert site.errors(content) == ["cluster_networks must be a list, not '192.0.2.0/24' (all hosts)"]
