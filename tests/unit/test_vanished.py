"""Which documents that a worker does not find were removed, and which it merely cannot see."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from semantik.engine import Finished, Source
from semantik.runner import Runner


def judge(root: Path, gone: list[Path], there: list[Path]) -> dict[str, tuple[str, str | None]]:
    """Return outcome and reason of each document of a shard, by its name."""
    documents = [Source(key, str(path), None, 1) for key, path in enumerate([*gone, *there])]
    finished = [
        Finished(source.key, "removed" if source.key < len(gone) else "embedded") for source in documents
    ]
    host = cast(Any, SimpleNamespace(settings=SimpleNamespace(host="gpu1")))
    held = cast(Any, SimpleNamespace(root=str(root)))
    judged = Runner._vanished(host, held, finished, documents)
    return {Path(documents[item.key].uri).name: (item.outcome, item.error) for item in judged}


def share(tmp_path: Path) -> list[Path]:
    there = [tmp_path / f"{number}.txt" for number in range(5)]
    for path in there:
        path.write_text("")
    return there


def test_a_document_gone_from_a_folder_that_holds_others_was_removed(tmp_path: Path) -> None:
    found = judge(tmp_path, [tmp_path / "gone.txt"], share(tmp_path))
    assert found["gone.txt"] == ("removed", None)


def test_a_share_below_the_root_that_is_not_mounted_removes_nothing(tmp_path: Path) -> None:
    there = share(tmp_path)
    (tmp_path / "sub").mkdir()
    found = judge(tmp_path, [tmp_path / "gone.txt", tmp_path / "sub" / "hidden.txt"], there)
    assert found["hidden.txt"] == ("failed", f"not found on gpu1: is {tmp_path}/sub mounted there?")
    assert found["gone.txt"] == ("removed", None)
    assert found["0.txt"] == ("embedded", None)


def test_most_documents_gone_is_a_share_that_went_away(tmp_path: Path) -> None:
    found = judge(tmp_path, [tmp_path / f"gone{number}.txt" for number in range(6)], share(tmp_path))
    assert found["gone0.txt"] == ("failed", f"not found on gpu1: is {tmp_path} mounted there?")
