"""The action that chooses or checks torch's build: what it reads, and real runs of the role's task file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch_build
import yaml

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
VERSION = torch_build.torch_version(ROOT)


@pytest.mark.parametrize(
    ("torch", "build"),
    [
        ("cu126", "cu126"),
        ("cpu", "cpu"),
        ("https://mirror.example/torch/cu130", "cu130"),
        ("https://mirror.example/torch/cpu/", "cpu"),
        ("https://mirror.example/simple", ""),
        ("/srv/torch-2.13.0+cu126-cp311-cp311-manylinux_2_28_x86_64.whl", "cu126"),
        ("/srv/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl", ""),
        ("/nowhere", ""),
        ("", ""),
    ],
)
def test_an_explicit_setting_names_its_build_where_it_can(torch: str, build: str) -> None:
    assert torch_build.named_build(torch, VERSION) == build


def test_a_directory_of_wheels_names_the_build_that_all_have(tmp_path: Path) -> None:
    for python in ("cp311", "cp313"):
        (tmp_path / f"torch-{VERSION}+cu126-{python}-{python}-linux_x86_64.whl").touch()
    (tmp_path / "torch-1.0.0+cu118-cp311-cp311-linux_x86_64.whl").touch()
    assert torch_build.named_build(str(tmp_path), VERSION) == "cu126"
    (tmp_path / f"torch-{VERSION}+cpu-cp311-cp311-linux_x86_64.whl").touch()
    assert torch_build.named_build(str(tmp_path), VERSION) == ""


def test_architectures_are_read_as_people_write_them() -> None:
    given = {"cu126": "7.5;8.0 9.0+PTX", "cu130": 9.0, "cu132": [8.0, "9.0"]}
    assert torch_build.read_architectures(given) == {
        "cu126": "7.5;8.0 9.0+PTX",
        "cu130": "9.0",
        "cu132": "8.0 9.0",
    }
    for wrong in ({"12.6": "9.0"}, {"cpu": "9.0"}, {"cu126": "sm_90"}, {"cu126": ""}):
        with pytest.raises(ValueError, match=r"write (it|them) like"):
            torch_build.read_architectures(wrong)


def manifest(build_dir: Path, release: str, age: int, **content: str) -> None:
    """Write the manifest of a release, `age` seconds old."""
    path = build_dir / "wheelhouse" / release / "worker-py311-x86_64.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    os.utime(path, (1_000_000 - age, 1_000_000 - age))


def test_the_newest_wheelhouse_of_this_torch_says_what_the_cluster_has(tmp_path: Path) -> None:
    assert torch_build.build_before(tmp_path, VERSION) == ""
    manifest(tmp_path, "a", 30, torch=f"{VERSION}+cpu", torch_build="cpu")
    manifest(tmp_path, "b", 20, torch=f"{VERSION}+cu126", torch_build="cu126")
    manifest(tmp_path, "c", 10, torch="1.0.0+cu118", torch_build="cu118")
    manifest(tmp_path, "d", 0)  # of a release that did not write it down
    assert torch_build.build_before(tmp_path, VERSION) == "cu126"


L4 = {"bus_id": "00000000:3b:00.0", "name": "NVIDIA L4", "capability": "8.9"}


def facts(driver: str, **more: Any) -> dict[str, Any]:
    """The fact `worker_driver` of a host with an L4."""
    seen = {"driver_version": driver, "cuda_version": "", "gpus": [L4], "pci": [], "lost": []}
    known = {"device": "auto", "seen": seen, "source": "cuda_repository", "version": "", "comes": False}
    return known | {"system": "Debian 13", "machine": "x86_64"} | more


OLD, NEW = facts("550.163.01"), facts("580.95.05")


def test_hosts_that_were_not_asked_are_absent() -> None:
    hostvars = {"gpu1": {"worker_driver": OLD}, "gpu2": {}, "gpu3": {"worker_driver": NEW, "worker_gpus": []}}
    hosts, absent = torch_build.read_hosts({"workers": list(hostvars)}, hostvars)
    assert [(host.name, host.driver) for host in hosts] == [("gpu1", "550.163.01"), ("gpu3", "580.95.05")]
    assert absent == ["gpu2"]


class Site:
    """Runs the role's task file for workers whose facts are given."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, known: dict[str, Any], *arguments: str, **variables: Any) -> dict[str, Any]:
        """Return what the action returned, and its output as `output`; hosts without facts are None."""
        workers = {name: {"known": value} if value else {} for name, value in known.items()}
        groups = {"redis": {"hosts": {"head": {}}}, "postgresql": {"hosts": {"head": {}}}}
        children = groups | {"control": {"hosts": {"head": {}}}, "workers": {"hosts": workers}}
        settings = {"cluster_networks": ["192.0.2.0/24"], "cluster_build_dir": str(self.directory / "build")}
        inventory = {"all": {"vars": settings | variables, "children": children}}
        (self.directory / "hosts.yml").write_text(yaml.safe_dump(inventory))
        role = {"name": "wheelhouse", "tasks_from": "torch"}
        result = str(self.directory / "result.json")
        plays = [
            {
                "hosts": "workers",
                "tasks": [
                    {
                        "ansible.builtin.set_fact": {"worker_driver": "{{ known }}"},
                        "when": "known is defined",
                    }
                ],
            },
            {
                "hosts": "localhost",
                "tasks": [
                    {
                        "block": [{"ansible.builtin.import_role": role}],
                        "always": [
                            {
                                "ansible.builtin.copy": {
                                    "content": "{{ __wheelhouse_torch | to_json }}",
                                    "dest": result,
                                    "mode": "0600",
                                },
                                "check_mode": False,
                            }
                        ],
                    }
                ],
            },
        ]
        common = {"gather_facts": False, "connection": "local"}
        playbook = self.directory / "play.yml"
        playbook.write_text(yaml.safe_dump([play | common for play in plays]))
        env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        env |= {"ANSIBLE_LOCAL_TEMP": str(self.directory / "tmp"), "ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
        done = subprocess.run(
            [PLAYBOOK, "-i", self.directory / "hosts.yml", playbook, *arguments],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert Path(result).is_file(), output
        return json.loads(Path(result).read_text()) | {"output": output}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_build_that_a_driver_cannot_serve_stops_the_run_with_a_line_for_each_host(site: Site) -> None:
    result = site.run({"gpu1": OLD, "gpu2": NEW}, wheelhouse_torch="cu130")
    assert result["failed"]
    assert result["msg"] == f"torch {VERSION}+cu130 does not fit 1 worker: the run stops here."
    [line] = result["problems"]
    assert f"[ERROR]: {line}" in result["output"]
    assert line.startswith("gpu1: driver 550.163.01 serves CUDA up to 12.4")
    assert line.endswith(": set wheelhouse_torch to cu126, or nvidia_driver_version to 580 or newer")


def test_auto_in_check_mode_and_a_pin_that_will_be(site: Site) -> None:
    result = site.run({"gpu1": OLD, "gpu2": NEW}, "--check")
    assert (result["build"], result["chosen"], result["changed"]) == ("cu126", True, False)
    assert "cu130" in result["refused"]
    assert site.run({"gpu1": OLD | {"version": "580"}, "gpu2": NEW})["build"] == "cu130"


def test_what_is_refused_may_be_wanted(site: Site) -> None:
    result = site.run({"gpu1": OLD}, wheelhouse_torch="cu130", wheelhouse_torch_strict=False)
    assert (result["build"], result.get("failed", False)) == ("cu130", False)
    assert any("driver 550.163.01 serves CUDA up to 12.4" in line for line in result["warnings"])
    assert "refused" not in result


def test_a_limited_run_keeps_the_build_and_the_cpu_asks_for_none(site: Site) -> None:
    partly = {"gpu1": None, "gpu2": NEW}
    first = site.run(partly)
    assert first["build"] == "cu130"
    assert any(
        "cu130 is chosen without gpu1, not looked at in this run" in line for line in first["warnings"]
    )
    manifest(site.directory / "build", "a", 0, torch=f"{VERSION}+cu126", torch_build="cu126")
    again = site.run(partly)
    assert (again["build"], again.get("warnings", [])) == ("cu126", [])
    cpu = site.run({"gpu1": facts("", device="cpu")})
    assert (cpu["build"], cpu["refused"], cpu.get("warnings", [])) == ("cpu", {}, [])


def test_the_playbook_asks_before_anything_is_made() -> None:
    plays = yaml.safe_load((ROOT / "playbooks" / "site.yml").read_text())
    names = [play["name"] for play in plays]
    asked = names.index("Look at the workers together")
    assert names[asked - 1] == "Look at the hosts"
    assert not any(play.get("roles") for play in plays[: asked + 1])
    assert plays[asked]["tags"] == ["always"]
    looked = plays[asked - 1]["tasks"][0]["loop"]
    assert looked[-2:] == [
        {"role": "worker", "group": "workers", "tasks": "slots"},
        {"role": "worker", "group": "workers", "tasks": "compatible"},
    ]
