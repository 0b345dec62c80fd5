"""A job from its submission to its result, with everything up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from cluster import Cluster

WORDS = "the river carried grain past towers while merchants counted silver under lanterns of green glass".split()


def write(folder: Path, count: int, words: int = 120, seed: int = 0) -> None:
    """Write `count` text documents of `words` words each."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    for at in range(count):
        text = " ".join(random.choice(WORDS, words))
        (folder / f"document-{at:04d}.txt").write_text(f"Document {seed} {at}. {text}.\n", encoding="utf-8")


def test_a_job_completes_and_the_next_finds_only_what_changed(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write(folder, 30)
    first = cluster.finish(cluster.submit(folder, "changes"))
    assert first.state == "completed", first
    assert cluster.outcomes(first) == {"embedded": 30}

    again = cluster.finish(cluster.submit(folder, "changes"))
    assert again.state == "completed"
    assert (again.listed, again.unchanged, cluster.outcomes(again)) == (30, 30, {})

    (folder / "document-0000.txt").write_text("Something else entirely is written here now.\n", encoding="utf-8")
    os.utime(folder / "document-0001.txt", (time.time(), time.time() + 5))
    (folder / "document-0002.txt").unlink()
    (folder / "document-9999.txt").write_text("A new document.\n", encoding="utf-8")
    third = cluster.finish(cluster.submit(folder, "changes"))
    assert third.state == "completed"
    # Touched without a change of content: the hash is the same, and nothing is embedded.
    assert cluster.outcomes(third) == {"embedded": 2, "skipped": 1, "removed": 1}
    ((count,),) = cluster.rows(
        "SELECT count(*) FROM documents d JOIN collections c ON c.id = d.collection_id WHERE c.name = 'changes'"
    )
    assert count == 30
