"""The lock files agree with pyproject.toml and with each other, and name no index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*-py*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(path: Path) -> dict[str, str]:
    """Return name -> version of a lock file."""
    found = re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", path.read_text(), re.MULTILINE)
    return dict(found)


def test_every_set_is_locked_for_every_python() -> None:
    assert [path.stem for path in LOCKS] == [
        f"{name}-{python}" for name in ("control", "worker") for python in ("py311", "py312", "py313")
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_requirement_of_the_project_is_locked_at_its_version(lock: Path) -> None:
    extras = ["control", "s3"] + (["worker"] if lock.stem.startswith("worker") else [])
    wanted = [
        *PROJECT["dependencies"],
        *(each for extra in extras for each in PROJECT["optional-dependencies"][extra]),
    ]
    locked = pins(lock)
    for requirement in wanted:
        name, _, version = requirement.partition("==")
        name = re.split(r"[\[<>=]", name)[0]
        if name == "torch":  # locked with its build, when the wheelhouse is made
            assert name not in locked
            continue
        assert name in locked, requirement
        if version:
            assert locked[name] == version


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_has_hashes_and_none_has_an_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    for block in re.split(r"(?m)^(?=[a-z0-9])", text)[1:]:
        assert "--hash=sha256:" in block, block.splitlines()[0]


@pytest.mark.parametrize("python", ["py311", "py312", "py313"])
def test_one_package_has_one_version_in_both_sets(python: str) -> None:
    worker, control = (pins(ROOT / "requirements" / f"{name}-{python}.txt") for name in ("worker", "control"))
    assert control.items() <= worker.items()


def test_markers_hold_for_the_targets_python_not_for_the_controllers() -> None:
    # Debian 12 has Python 3.11.2, and redis needs async-timeout below 3.11.3.
    assert "async-timeout" in pins(ROOT / "requirements" / "control-py311.txt")
    assert "async-timeout" not in pins(ROOT / "requirements" / "control-py313.txt")
