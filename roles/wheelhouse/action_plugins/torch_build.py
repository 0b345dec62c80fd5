"""Action that chooses torch's build, or checks the one that is set, against the workers' drivers and GPUs.

Runs on the controller after the hosts were looked at, changes nothing, and names every problem in a line of
its own. What it decides by is in module_utils: torch_tables.py the facts, torch_fit.py the decisions.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

sys.path.insert(0, str(Path(__file__).parents[1] / "module_utils"))
try:
    import torch_fit
    import torch_hosts
    import torch_tables
finally:
    sys.path.pop(0)

#: A build by name, and what names one at the end of an index's address or in a wheel's version.
NAME = re.compile(r"cpu|cu\d{3}")
IN_ADDRESS = re.compile(r"/(cpu|cu\d{3})/?$")
IN_WHEEL = re.compile(r"\+(cpu|cu\d{3})-")


def named_build(torch: str, version: str) -> str:
    """Return the build that an explicit `wheelhouse_torch` names; empty when only its installation shows it.

    `torch` is a name (`cu126`), the path of a wheel or of a directory of wheels, or an index's address.
    """
    if NAME.fullmatch(torch):
        return torch
    if "://" in torch:
        match = IN_ADDRESS.search(torch)
        return match[1] if match else ""
    place = Path(torch).expanduser()
    wheels = (
        [place.name]
        if place.suffix == ".whl"
        else [path.name for path in place.glob(f"torch-{version}*.whl")]
    )
    found = {match[1] for name in wheels if (match := IN_WHEEL.search(name))} if torch else set()
    return found.pop() if len(found) == 1 else ""


def build_before(build_dir: Path, version: str) -> str:
    """Return the build of torch in the newest wheelhouse of this version; empty when there is none."""
    manifests = sorted(build_dir.glob("wheelhouse/*/worker-*.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(manifests):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("torch", "").partition("+")[0] == version:
            return str(manifest.get("torch_build", ""))
    return ""


def read_hosts(groups: Mapping[str, Any], hostvars: Any) -> tuple[list[torch_hosts.Host], list[str]]:
    """Return the workers that this run looked at, and the names of the others."""
    hosts, absent = [], []
    for name in groups.get("workers", ()):
        variables = hostvars[name]
        facts = variables.get("worker_driver")
        if facts is None:
            absent.append(name)
            continue
        hosts.append(torch_hosts.Host.read(name, facts, variables.get("worker_gpus") or []))
    return hosts, absent


def read_architectures(given: Mapping[str, Any]) -> dict[str, str]:
    """Return build -> capabilities as text. Raises ValueError naming what is neither."""
    more = {}
    for build, listed in given.items():
        if not torch_tables.cuda_of_build(build):
            raise ValueError(f"{build!r} is no build for CUDA; write it like cu126")
        # One capability without quotes is a number to YAML, several may be a list of them.
        more[build] = " ".join(map(str, listed)) if isinstance(listed, list) else str(listed)
        torch_tables.kernels(more[build])
    return more


def unsettled(
    asked: str,
    version: str,
    build: str,
    before: str,
    hosts: Sequence[torch_hosts.Host],
    absent: Sequence[str],
) -> list[str]:
    """Return warnings about a choice that this run cannot be sure of."""
    warnings, setting = [], f"wheelhouse_torch {asked!r}"
    if not build and any(host.computes for host in hosts):
        unknown = f"which builds torch {version} has" if asked == "auto" else "which build of torch this is"
        warnings.append(f"{setting}: {unknown} is not known yet; what is found is checked before it is used")
    if asked == "auto" and absent and not before:
        warnings.append(
            f"{setting}: {build or 'what pip finds'} is chosen without {', '.join(absent)}, not looked at in "
            "this run; one without --limit may choose another"
        )
    return warnings


def torch_version(source: Path) -> str:
    """Return the version of torch that pyproject.toml pins. Raises AnsibleError when it pins none."""
    pyproject = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    for requirement in pyproject["project"]["optional-dependencies"]["worker"]:
        if match := re.fullmatch(r"torch==([\w.]+)", requirement):
            return match[1]
    raise AnsibleError("pyproject.toml pins no torch==VERSION in the extra 'worker'")


class ActionModule(ActionBase):
    """Arguments: torch, architectures, strict, source (repository), build_dir; see the role's README."""

    _VALID_ARGS = frozenset({"torch", "architectures", "strict", "source", "build_dir"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `build` (empty: whatever is found), `chosen` (by `auto`), `refused` and `notes`.

        `refused` is build -> a line for each worker that cannot use it, for what is found by another way.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        given, task_vars = self._task.args, task_vars or {}
        asked = str(given.get("torch") or "")
        version = torch_version(Path(given["source"]))
        hosts, absent = read_hosts(task_vars["groups"], task_vars["hostvars"])
        try:
            more = read_architectures(given.get("architectures") or {})
        except ValueError as error:
            return result | {"failed": True, "msg": f"wheelhouse_torch_architectures: {error}"}
        before = build_before(Path(given["build_dir"]), version) if absent else ""
        if asked == "auto":
            build = torch_fit.choose(version, hosts, more, before)
        else:
            build = named_build(asked, version)
        report = torch_fit.judge(version, build, hosts, more) if build else torch_fit.Report()
        report.warnings += unsettled(asked, version, build, before, hosts, absent)
        strict = boolean(given.get("strict", True))
        if not strict:
            report = torch_fit.Report([], report.refusals + report.warnings, report.notes)
        if report.warnings:
            result["warnings"] = report.warnings
        result |= {"build": build, "chosen": asked == "auto", "notes": report.notes}
        if lines := report.refusals:
            for line in lines:
                self._display.error(line, wrap_text=False)
            count = "1 worker" if len(lines) == 1 else f"{len(lines)} workers"
            result |= {"failed": True, "problems": lines}
            result["msg"] = f"torch {version}+{build} does not fit {count}: the run stops here."
        elif strict:
            result["refused"] = torch_fit.refused(version, hosts, more, build if asked == "auto" else "")
        return result
