"""The repository's own linters find what they are for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SPECIFICATION = """
argument_specs:
  main:
    options:
      thing_size:
        type: int
        description: How large.
      thing_name:
        type: str
        required: true
        description: What it is called.
"""


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script)]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def role(directory: Path, defaults: str, specification: str | None = SPECIFICATION) -> None:
    for name in ("defaults", "meta"):
        (directory / "roles" / "thing" / name).mkdir(parents=True)
    (directory / "roles/thing/defaults/main.yml").write_text(defaults)
    if specification is not None:
        (directory / "roles/thing/meta/argument_specs.yml").write_text(specification)


def test_arguments_that_agree_pass(tmp_path: Path) -> None:
    role(tmp_path, "thing_size: 3\n__thing_internal: 1\n")
    result = run("check-arguments", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("defaults", "complaint"),
    [
        ("thing_size: 3\nthing_colour: red\n", "thing_colour has a default and no specification"),
        ("{}\n", "thing_size has no default and is not required"),
        ("thing_size: three\n", "the default of thing_size is no int"),
        ("thing_size: 3\nthing_name: x\n", "thing_name is required and has a default"),
    ],
)
def test_arguments_that_differ_are_named(tmp_path: Path, defaults: str, complaint: str) -> None:
    role(tmp_path, defaults)
    result = run("check-arguments", tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip() == f"roles/thing: {complaint}"


def test_a_role_without_a_specification_is_named(tmp_path: Path) -> None:
    role(tmp_path, "{}\n", None)
    result = run("check-arguments", tmp_path)
    assert result.returncode == 1
    assert "argument_specs.yml: missing" in result.stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("x\n" * 501, "long.py: 501 lines, more than 500: split it"), ("x", "long.py: no newline at the end")],
)
def test_files_that_are_too_long_or_unfinished_are_named(
    tmp_path: Path, content: str, complaint: str
) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "long.py").write_text(content)
    (tmp_path / "short.py").write_text("x\n" * 500)
    result = run("check-files", tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip() == complaint
