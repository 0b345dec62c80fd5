"""The builder of the wheelhouse: names, digests, what it takes torch from, and the bytes it packs."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import wheelhouse
from wheelhouse import BuildError, Target, Torch

ROOT = Path(__file__).resolve().parents[2]
NO_SOURCES: dict[str, list[str]] = {}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small checkout: the real pyproject.toml and lock files, a package of one file."""
    root = tmp_path / "source"
    (root / "app" / "semantik").mkdir(parents=True)
    (root / "app" / "semantik" / "__init__.py").write_text('__version__ = "0"\n')
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(ROOT / "requirements", root / "requirements")
    return root


def run(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run the builder and return its result."""
    build, cache = str(tmp_path / "build"), str(tmp_path / "cache")
    status = wheelhouse.main(["--source", str(source), "--build", build, "--cache", cache, *arguments])
    output = capsys.readouterr()
    assert status == 0, output.err
    result: dict[str, Any] = json.loads(output.out)
    return result


def wheel(path: Path, content: str = "x") -> Path:
    """Write something that looks like a wheel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("module.py", content)
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stands in for pip, uv and the network; returns the names of targets that were downloaded."""
    downloaded: list[str] = []

    def download(target: Target, requirements: str, torch: Torch, cache: Path) -> Path:
        assert "--hash=sha256:" in requirements
        downloaded.append(target.name)
        wheel(tmp_path / "wheels" / target.name / "celery-5.7.0-py3-none-any.whl")
        return tmp_path / "wheels" / target.name

    monkeypatch.setattr(wheelhouse, "pip_config", dict)
    monkeypatch.setattr(wheelhouse, "download", download)
    monkeypatch.setattr(wheelhouse, "lock_torch", lambda *_: "torch==2.13.0 --hash=sha256:00\n")
    monkeypatch.setattr(
        wheelhouse, "build_app", lambda *_: wheel(tmp_path / "semantik-0.1.0-py3-none-any.whl")
    )
    return downloaded


def test_a_second_build_changes_nothing_and_names_the_same_release(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], offline: list[str]
) -> None:
    first = run(source, tmp_path, capsys, "control:3.13:x86_64", "worker:3.11:x86_64")
    again = run(source, tmp_path, capsys, "control:3.13:x86_64")
    assert (first["changed"], again["changed"]) == (True, False)
    assert first["release"] == again["release"]
    assert offline == ["control-py313-x86_64", "worker-py311-x86_64"]
    packed = first["sets"]["worker-py311-x86_64"]
    with tarfile.open(packed["tar"]) as archive:
        assert archive.getnames() == sorted(archive.getnames())
        listed = archive.extractfile("requirements.txt")
        assert listed
        requirements = listed.read().decode()
    assert "torch==2.13.0 --hash" in requirements
    assert "semantik==0.1.0 --hash=sha256:" in requirements
    assert packed["sha256"] == wheelhouse.file_hash(Path(packed["tar"]))


def test_a_torch_that_the_workers_cannot_use_is_neither_fetched_nor_kept(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    offline: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wheelhouse, "lock_torch", lambda *_: "torch==2.13.0+cu130 --hash=sha256:00\n")
    refused = tmp_path / "refused.json"
    refused.write_text(json.dumps({"cu130": ["gpu1: driver 550.163.01 serves CUDA up to 12.4 ..."]}))
    places = ["--source", str(source), "--build", str(tmp_path / "build"), "--cache", str(tmp_path / "cache")]
    arguments = [*places, "--refused", str(refused), "worker:3.11:x86_64"]
    assert wheelhouse.main(arguments) == 1
    assert (
        "torch 2.13.0+cu130 (cu130) was found, which does not fit:\n  gpu1: driver" in capsys.readouterr().err
    )
    assert offline == [], "it was fetched"
    built = run(source, tmp_path, capsys, "worker:3.11:x86_64", "control:3.13:x86_64")["sets"]
    assert built["worker-py311-x86_64"]["torch_build"] == "cu130"
    assert built["control-py313-x86_64"]["torch"] == ""
    # A driver went back, say: what was built before is looked at too.
    assert wheelhouse.main(arguments) == 1
    assert wheelhouse.main([*places, "--refused", str(refused), "control:3.13:x86_64"]) == 0


def test_check_mode_says_what_would_be_built_and_builds_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], offline: list[str]
) -> None:
    result = run(source, tmp_path, capsys, "--check", "control:3.13:x86_64")
    assert (result["changed"], result["sets"], offline) == (True, {}, [])
    assert not (tmp_path / "build").exists()


def test_a_build_that_was_cut_short_is_done_anew(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], offline: list[str]
) -> None:
    first = run(source, tmp_path, capsys, "control:3.13:x86_64")
    Path(first["sets"]["control-py313-x86_64"]["tar"]).with_suffix(".json").unlink()
    assert run(source, tmp_path, capsys, "control:3.13:x86_64")["changed"]


@pytest.mark.parametrize(
    ("path", "text", "same"),
    [
        ("app/semantik/__init__.py", '__version__ = "1"\n', False),
        ("app/semantik/new.sql", "SELECT 1;\n", False),
        ("app/semantik/__pycache__/x.pyc", "bytecode", True),
        ("README.md", "other words", True),
        ("requirements/control-py313.txt", "celery==5.7.0 --hash=sha256:00\n", False),
    ],
)
def test_the_release_is_named_after_what_runs(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    text: str,
    same: bool,
) -> None:
    monkeypatch.setattr(wheelhouse, "pip_config", dict)
    before = run(source, tmp_path, capsys, "--check", "control:3.13:x86_64")["release"]
    (source / path).parent.mkdir(exist_ok=True)
    (source / path).write_text(text)
    after = run(source, tmp_path, capsys, "--check", "control:3.13:x86_64")["release"]
    assert (before == after) is same


def test_settings_of_linters_make_no_release(source: Path) -> None:
    pyproject = wheelhouse.project(source)
    before = wheelhouse.app_digest(source, pyproject)
    pyproject["tool"]["ruff"] = {"line-length": 99}
    assert wheelhouse.app_digest(source, pyproject) == before
    pyproject["project"]["version"] = "9.9.9"
    assert wheelhouse.app_digest(source, pyproject) != before


def test_equal_content_packs_to_equal_bytes(tmp_path: Path) -> None:
    hashes = set()
    for name, order in (("a", 1), ("b", -1)):
        place = tmp_path / name
        place.mkdir()
        wheels = [wheel(place / f"{each}.whl") for each in ("one", "two")]
        for index, file in enumerate(wheels):
            data = f"content {index}".encode()
            file.write_bytes(data)
        wheelhouse.pack(place / "set.tar", wheels[::order], "one==1\n")
        hashes.add(wheelhouse.file_hash(place / "set.tar"))
    assert len(hashes) == 1


def test_torch_is_taken_from_the_links_that_pip_has(tmp_path: Path) -> None:
    wheel(tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl")
    wheel(tmp_path / "torch-2.1.0-cp311-cp311-linux_x86_64.whl")
    torch = wheelhouse.find_torch("", "2.13.0", {"find-links": [str(tmp_path), str(tmp_path)]})
    assert torch.options == (f"--find-links={tmp_path}",)
    assert torch.identity.startswith("torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl ")
    assert "torch-2.1.0" not in torch.identity


def test_a_wheel_a_directory_and_an_index_name_torch(tmp_path: Path) -> None:
    file = wheel(tmp_path / "torch-2.13.0-cp311-cp311-linux_x86_64.whl")
    by_file = wheelhouse.find_torch(str(file), "2.13.0", NO_SOURCES)
    assert by_file == wheelhouse.find_torch(str(tmp_path), "2.13.0", NO_SOURCES)
    index = wheelhouse.find_torch("https://mirror.example/cpu", "2.13.0", NO_SOURCES)
    assert index == Torch(("--extra-index-url=https://mirror.example/cpu",), "https://mirror.example/cpu")
    assert wheelhouse.find_torch("", "2.13.0", NO_SOURCES) == Torch((), "index")


def test_another_build_of_torch_is_another_release(tmp_path: Path) -> None:
    file = wheel(tmp_path / "torch-2.13.0-cp311-cp311-linux_x86_64.whl", "cpu")
    before = wheelhouse.find_torch(str(tmp_path), "2.13.0", NO_SOURCES).identity
    wheel(file, "cuda")
    assert wheelhouse.find_torch(str(tmp_path), "2.13.0", NO_SOURCES).identity != before


def test_a_place_without_torch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"wheelhouse_torch: no torch-2\.13\.0\*\.whl in "):
        wheelhouse.find_torch(str(tmp_path), "2.13.0", NO_SOURCES)


def test_what_the_build_of_torch_alone_needs_is_added_to_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "worker-py311.txt"
    lock.write_text("sympy==1.14.0 \\\n    --hash=sha256:11\n")
    answer = (
        "nvidia-cublas==13.1 \\\n    --hash=sha256:22\n"
        "sympy==1.14.0 \\\n    --hash=sha256:11\n"
        "torch==2.13.0 \\\n    --hash=sha256:33\n"
    )
    monkeypatch.setattr(wheelhouse, "run", lambda *_: answer)
    text = wheelhouse.lock_torch(
        Target("worker", "3.11", "x86_64"), lock, Torch((), ""), "2.13.0", NO_SOURCES
    )
    assert text == answer.replace("sympy==1.14.0 \\\n    --hash=sha256:11\n", "")


def test_platforms_reach_from_the_oldest_tag_to_debian_12() -> None:
    tags = wheelhouse.platforms("x86_64")
    assert {
        "manylinux_2_36_x86_64",
        "manylinux_2_28_x86_64",
        "manylinux_2_17_x86_64",
        "manylinux2014_x86_64",
    } <= set(tags)
    assert "manylinux_2_37_x86_64" not in tags


@pytest.mark.parametrize("text", ["worker", "worker:3.11", "gpu:3.11:x86_64", "worker:311:x86_64"])
def test_a_target_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(BuildError, match=r"not SET:PYTHON:ARCHITECTURE"):
        Target.parse(text)


def test_a_python_without_a_lock_file_is_refused_with_what_to_do(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheelhouse, "pip_config", dict)
    build = str(tmp_path / "build")
    status = wheelhouse.main(
        ["--source", str(source), "--build", build, "--cache", build, "worker:3.9:x86_64"]
    )
    assert status == 1
    error = capsys.readouterr().err
    assert "no lock file for Python 3.9" in error
    assert "requirements/lock.sh" in error


def test_pips_sources_are_read_from_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        wheelhouse,
        "pip",
        lambda *_: (
            ":env:.find-links='/a'\nglobal.extra-index-url='file:///x file:///y'\nglobal.index-url='https://m/'\n"
        ),
    )
    config = wheelhouse.pip_config()
    assert config == {
        "find-links": ["/a"],
        "extra-index-url": ["file:///x", "file:///y"],
        "index-url": ["https://m/"],
    }
    assert wheelhouse.uv_sources(config) == [
        "--default-index=https://m/",
        "--index=file:///x",
        "--index=file:///y",
    ]
