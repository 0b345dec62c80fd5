"""The command against a running cluster: what it does, says and ends with."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from cluster import Cluster
from command import ask, run, start
from documents import write
from services import wait_for

SUBJECTS = {
    "bread.md": "# Dough\n\nBread dough rises because yeast makes gas, and the oven sets it.\n",
    "boats.txt": "To tack, a sailing boat turns its bow through the wind.\n",
}


def subjects(folder: Path) -> Path:
    folder.mkdir()
    for name, text in SUBJECTS.items():
        (folder / name).write_text(text)
    return folder


def test_submit_watch_search_show_and_drop(cluster: Cluster, tmp_path: Path) -> None:
    folder = subjects(tmp_path / "subjects")
    result = run(cluster, "submit", str(folder), "--collection", "subjects", "--watch")
    assert result.returncode == 0, result.stderr
    first, *_, last = result.stdout.splitlines()
    assert first.endswith(f": {folder} into subjects")
    assert last.startswith("completed: 2 embedded; 2 chunks, ")
    job = first.split()[1].rstrip(":")

    found = run(cluster, "search", "subjects", "How does a loaf get light?", "-n", "1")
    assert found.returncode == 0, found.stderr
    head, excerpt = found.stdout.splitlines()[:2]
    score, uri = head.split()[:2]
    assert uri == str(folder / "bread.md")
    assert 0 < float(score) <= 1
    assert "yeast makes gas" in excerpt
    hits = ask(cluster, "search", "subjects", "turning a boat against the wind")
    assert [Path(hit["uri"]).name for hit in hits] == ["boats.txt", "bread.md"]
    assert set(hits[0]) == {"score", "uri", "place", "ordinal", "text"}

    shown = ask(cluster, "show", job[:8])
    assert (shown["job"]["id"], shown["job"]["state"], shown["failures"]) == (job, "completed", [])
    assert shown["progress"]["chunks"] == 2
    assert shown["worked"] > 0
    assert set(shown["waits"]) == {"parse_out", "chunk_in", "chunk_out", "forward_in", "write"}
    said = run(cluster, "show", job).stdout
    assert ", 0 truncated\n" in said
    assert "waited:     the model for chunks " in said
    # Two documents take no time: what is slow is that they come.
    assert "slowest: " in said

    assert [c["documents"] for c in ask(cluster, "collections") if c["name"] == "subjects"] == [2]
    assert "subjects" in run(cluster, "collections", "list").stdout
    assert ask(cluster, "collections", "show", "subjects")["chunks"] == 2
    refused = run(cluster, "collections", "drop", "subjects")
    assert refused.returncode == 1
    assert "give --yes" in refused.stderr
    assert ask(cluster, "collections", "drop", "subjects", "--yes")["dropped"] == "subjects"
    gone = run(cluster, "search", "subjects", "anything")
    assert gone.returncode == 1
    assert "there is no collection 'subjects'" in gone.stderr


def test_a_document_that_fails_is_shown_with_its_reason_and_ends_watch_with_3(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = subjects(tmp_path / "mixed")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 this is none")
    job = ask(cluster, "submit", str(folder), "--collection", "mixed")["job"]["id"]
    watched = run(cluster, "--json", "watch", job)
    assert watched.returncode == 3
    lines = [json.loads(line) for line in watched.stdout.splitlines()]
    assert lines[-1]["state"] == "completed_with_errors"
    assert (lines[-1]["documents_done"], lines[-1]["failed"]) == (3, 1)
    shown = run(cluster, "show", job)
    assert shown.returncode == 0
    assert "1 document failed:" in shown.stdout
    after = shown.stdout.partition(f"{folder}/broken.pdf\n")[2]
    assert "PDF" in after


@pytest.mark.parametrize("name", ["Not A Name", "-x", "ä"])
def test_a_refused_submission_leaves_no_rows(cluster: Cluster, tmp_path: Path, name: str) -> None:
    before = cluster.rows("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM collections)")
    result = run(cluster, "submit", str(tmp_path), f"--collection={name}")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "is no name for a collection" in result.stderr
    assert cluster.rows("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM collections)") == before


def test_a_model_that_is_not_the_collections_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    folder = subjects(tmp_path / "model")
    assert run(cluster, "submit", str(folder), "--collection", "model", "--watch").returncode == 0
    other = run(cluster, "search", "model", "anything", SEMANTIK_MODEL_REVISION="0" * 64)
    assert other.returncode == 1
    assert "holds vectors of all-MiniLM-L6-v2" in other.stderr


def test_searching_does_not_wait_for_a_job_and_ctrl_c_leaves_it_running(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = subjects(tmp_path / "quick")
    assert run(cluster, "submit", str(folder), "--collection", "quick", "--watch").returncode == 0
    write(tmp_path / "long", 400, words=400)
    with cluster.slowed():
        job = ask(cluster, "submit", str(tmp_path / "long"), "--collection", "long")["job"]["id"]
        wait_for(
            lambda: len(cluster.rows("SELECT FROM shards WHERE job_id = %s AND state = 'running'", job)) == 2,
            what="both slots to be busy",
        )
        assert ask(cluster, "search", "quick", "sailing", "-n", "1")[0]["uri"].endswith("boats.txt")
        listed = run(cluster, "jobs").stdout
        assert f"{job[:8]}  running" in listed, "the search waited for the job's end"

        watching = start(cluster, "watch", job[:12])
        assert watching.stdout is not None
        assert "running" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=30)
        assert watching.returncode == 130
        assert said == f"semantik: no longer watching; the job goes on: semantik watch {job[:8]}\n"

        refused = run(cluster, "collections", "drop", "long", "--yes")
        assert refused.returncode == 1
        assert "has a job that has not ended" in refused.stderr
        cancelled = run(cluster, "cancel", job)
        assert cancelled.stdout == f"job {job} is cancelled\n"
    watched = run(cluster, "watch", job)
    assert watched.returncode == 1
    assert watched.stdout.splitlines()[-1].startswith("cancelled: ")
    again = run(cluster, "cancel", job)
    assert again.returncode == 1
    assert "has already ended" in again.stderr


def test_a_prefix_must_name_one_job(cluster: Cluster) -> None:
    assert "is no job id" in run(cluster, "show", "xyz").stderr
    unknown = run(cluster, "show", "00000000-0000-0000-0000-000000000000")
    assert unknown.returncode == 1
    assert "there is no job" in unknown.stderr


def test_with_redis_down_a_job_is_recorded_and_starts_when_it_is_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = subjects(tmp_path / "later")
    cluster.services.stop("redis")
    try:
        result = run(cluster, "submit", str(folder), "--collection", "later", "--json")
    finally:
        cluster.services.start_redis()
    assert result.returncode == 0
    assert result.stderr.startswith("semantik: warning: Redis cannot be reached")
    assert "starts when Redis is back" in result.stderr
    said = json.loads(result.stdout)
    assert said["sent"] is False
    watched = run(cluster, "watch", said["job"]["id"])
    assert watched.returncode == 0, watched.stdout


def test_a_refused_listing_fails_the_job_with_the_reason(cluster: Cluster, tmp_path: Path) -> None:
    folder = subjects(tmp_path / "empty")
    assert run(cluster, "submit", str(folder), "--collection", "empty", "--watch").returncode == 0
    for path in folder.iterdir():
        path.unlink()
    refused = run(cluster, "submit", str(folder), "--collection", "empty", "--watch")
    assert refused.returncode == 1
    assert "--allow-removal" in refused.stdout
    allowed = run(cluster, "submit", str(folder), "--collection", "empty", "--watch", "--allow-removal")
    assert allowed.returncode == 0
    assert "2 removed" in allowed.stdout
