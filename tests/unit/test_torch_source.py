"""Where a build of torch by name comes from, and which build a lock holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch_source
import wheelhouse
from torch_source import BuildError, Torch

VERSION = "2.13.0"
INDEX = "https://mirror.example/torch/{build}"


def wheels(place: Path, *tags: str) -> dict[str, list[str]]:
    """Make wheels of these builds and return pip's configuration that finds them."""
    for tag in tags:
        (place / f"torch-{VERSION}{tag}-cp311-cp311-linux_x86_64.whl").write_text(tag)
    return {"find-links": [str(place)]}


def test_a_build_by_name_is_taken_from_the_links_first(tmp_path: Path) -> None:
    config = wheels(tmp_path, "+cpu", "+cu126")
    torch = torch_source.find_torch("cu126", VERSION, config, INDEX)
    assert torch.options == (f"--find-links={tmp_path}",)
    assert torch.versions == ("2.13.0+cu126",)
    assert "+cpu" not in torch.identity
    # Named or not, one wheel is one release: an inventory that names none gets the same as before.
    (tmp_path / "one").mkdir()
    one = wheels(tmp_path / "one", "+cpu")
    named = torch_source.find_torch("cpu", VERSION, one, only=False)
    assert named.identity == torch_source.find_torch("", VERSION, one).identity


def test_an_index_by_name_gets_the_build_into_its_address(tmp_path: Path) -> None:
    torch = torch_source.find_torch("cu130", VERSION, wheels(tmp_path, "+cpu"), INDEX)
    assert torch.options == ("--extra-index-url=https://mirror.example/torch/cu130",)
    assert torch.versions == ("2.13.0+cu130",)
    assert torch.identity != torch_source.find_torch("cu126", VERSION, {}, INDEX).identity


def test_a_named_build_takes_no_other_and_a_chosen_one_does() -> None:
    assert torch_source.find_torch("cu126", VERSION, {}).versions == ("2.13.0+cu126",)
    chosen = torch_source.find_torch("cu126", VERSION, {}, only=False)
    assert chosen.versions == ("2.13.0+cu126", "2.13.0")
    assert chosen.identity != torch_source.find_torch("cpu", VERSION, {}, only=False).identity


@pytest.mark.parametrize(
    ("lock", "found"),
    [
        ("torch==2.13.0+cu126 \\\n    --hash=sha256:00\n", ("2.13.0+cu126", "cu126")),
        ("torch==2.13.0+cpu --hash=sha256:00\n", ("2.13.0+cpu", "cpu")),
        ("cuda-toolkit==13.0.2 \\\n  --hash=sha256:00\ntorch==2.13.0 \\\n", ("2.13.0", "cu130")),
        ("nvidia-cuda-runtime-cu12==12.6.77 \\\ntorch==2.13.0 \\\n", ("2.13.0", "cu126")),
        ("nvidia-cuda-runtime==13.2.51 ; x\ntorch==2.13.0;x\n", ("2.13.0", "cu132")),
        ("torch==2.13.0 --hash=sha256:00\n", ("2.13.0", "")),
        ("torch==2.13.0+ours.1 --hash=sha256:00\n", ("2.13.0+ours.1", "")),
        ("celery==5.7.0\n", ("", "")),
    ],
)
def test_the_lock_shows_which_build_was_found(lock: str, found: tuple[str, str]) -> None:
    assert torch_source.found_build(lock) == found


def test_a_build_that_no_worker_can_use_is_refused_before_it_is_fetched() -> None:
    refused = {"cu130": ["gpu1: driver 550 ...: set ..."]}
    torch_source.check_build("2.13.0+cu126", "cu126", "cu126", refused)
    torch_source.check_build("", "", "", refused)
    with pytest.raises(
        BuildError, match=r"torch 2\.13\.0 \(cu130\) was found, which does not fit:\n  gpu1: driver"
    ):
        torch_source.check_build("2.13.0", "cu130", "", refused)
    with pytest.raises(BuildError, match="name an index of it in wheelhouse_torch_index"):
        torch_source.check_build("2.13.0", "cu130", "cu126", refused)


def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: Torch, found: str) -> str:
    """Lock with an index that has the version `found` alone."""
    empty = tmp_path / "worker-py311.txt"
    empty.write_text("")

    def compile_torch(target: object, lock: object, torch: object, version: str, config: object) -> str:
        if version != found:
            raise BuildError("no solution found")
        return f"torch=={version} --hash=sha256:00\n"

    monkeypatch.setattr(wheelhouse, "compile_torch", compile_torch)
    target = wheelhouse.Target("worker", "3.11", "x86_64")
    return wheelhouse.lock_torch(target, empty, torch, VERSION, {})


def test_versions_are_asked_for_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    either = Torch((), "", ("2.13.0+cu126", "2.13.0"))
    assert lock(tmp_path, monkeypatch, either, "2.13.0+cu126").startswith("torch==2.13.0+cu126 ")
    assert lock(tmp_path, monkeypatch, either, "2.13.0").startswith("torch==2.13.0 ")
    assert lock(tmp_path, monkeypatch, Torch((), ""), "2.13.0").startswith("torch==2.13.0 ")
    with pytest.raises(BuildError, match=r"no solution found\n  .*wheelhouse_torch_index"):
        lock(tmp_path, monkeypatch, Torch((), "", ("2.13.0+cu126",)), "2.13.0")


def test_refusals_come_by_a_file_or_by_standard_input(tmp_path: Path) -> None:
    (tmp_path / "refused.json").write_text(json.dumps({"cu130": ["x"]}))
    assert wheelhouse.read_json(str(tmp_path / "refused.json")) == {"cu130": ["x"]}
