"""A folder goes in, searches find it, and a worker that stops in the middle costs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from clusters import Cluster, Operator, rows, wait_for

Put = Callable[..., str]
#: So often each text of the long job is repeated: four slots need about half a minute for it on two cores.
LOG_DAYS = 60

SUBJECTS = {
    "bread.md": """# Sourdough

A loaf of sourdough bread rises slowly: wild yeast in the starter ferments the dough overnight, and the
baker folds it before it goes into a hot oven.
""",
    "sailing.txt": """To tack, the helmsman turns the bow of the sailing boat through the wind while the
crew lets the jib sheet go on one side and hauls it in on the other.
""",
    "volcano.html": """<html><head><title>Volcanoes</title></head><body><h1>Eruptions</h1>
<p>Magma rich in silica traps gas, so the volcano erupts with an explosion and ash.</p></body></html>
""",
}
QUESTIONS = {
    "How does a baker make dough rise?": "bread.md",
    "changing direction of a boat against the wind": "sailing.txt",
    "Why do some eruptions explode?": "volcano.html",
}
UNITS = (
    "semantik-worker@0.service",
    "semantik-worker@1.service",
    "semantik-planner.service",
    "semantik-scheduler.service",
)


@pytest.mark.unit(*UNITS, "semantik-query.service", "semantik-parser@*.service")
def test_questions_find_the_document_they_are_about(operator: Operator, documents: Put) -> None:
    uri = documents(SUBJECTS)
    shown = operator.wait(operator.submit(uri, "testinfra-subjects"))
    assert shown["state"] == "completed", shown
    for question, file in QUESTIONS.items():
        hits = operator.json("search", "testinfra-subjects", question)
        assert hits[0]["uri"].endswith(f"/{file}"), (question, hits)
    operator.run("collections", "drop", "testinfra-subjects", "--yes")


@pytest.mark.unit(*UNITS)
def test_unchanged_documents_are_left_and_removed_ones_go(
    cluster: Cluster, operator: Operator, documents: Put
) -> None:
    uri = documents(SUBJECTS)
    operator.wait(operator.submit(uri, "testinfra-changes"))
    again = operator.wait(operator.submit(uri, "testinfra-changes"))
    assert again["state"] == "completed"
    assert rows(cluster, f"SELECT count(*) FROM job_documents WHERE job_id = '{again['id']}'") == ["0"]
    cluster.control.check_output(f"rm {uri}/sailing.txt")
    operator.wait(operator.submit(uri, "testinfra-changes"))
    left = rows(
        cluster,
        "SELECT uri FROM documents d JOIN collections c ON c.id = d.collection_id "
        "WHERE c.name = 'testinfra-changes' ORDER BY uri",
    )
    assert [uri.rsplit("/", 1)[1] for uri in left] == ["bread.md", "volcano.html"]
    operator.run("collections", "drop", "testinfra-changes", "--yes")


@pytest.mark.unit(*UNITS)
def test_journal_names_job_and_shard_on_each_line_about_one(
    cluster: Cluster, operator: Operator, documents: Put
) -> None:
    job = operator.submit(documents(SUBJECTS), "testinfra-journal")
    operator.wait(job)
    shards = rows(cluster, f"SELECT id FROM shards WHERE job_id = '{job}'")
    assert shards
    # Found by what they tell, not by the ids, so that a line without one is seen.
    lines = [
        line
        for host in cluster.group("workers")
        for line in host.check_output(
            "journalctl --unit 'semantik-worker@*' --output cat --since -10min"
        ).splitlines()
        if re.search(r"semantik\.runner: (claimed|committed|given back|dropped|commit refused)\b", line)
    ]
    for line in lines:
        assert re.search(r"\bjob=[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", line), line
        assert re.search(r"\bshard=\d+\b", line), line
    for shard in shards:
        told = [line for line in lines if re.search(rf"\bshard={shard}\b", line)]
        assert any(": claimed " in line for line in told), (shard, lines)
        assert any(": committed " in line for line in told), (shard, lines)
        assert all(f"job={job}" in line for line in told), (shard, told)
    operator.run("collections", "drop", "testinfra-journal", "--yes")


@pytest.mark.unit(*UNITS)
def test_job_completes_while_a_worker_is_stopped_and_the_slot_works_again_after_start(
    cluster: Cluster, operator: Operator, documents: Put
) -> None:
    files = {f"log-{n:03}.txt": f"Day {n}. {SUBJECTS['sailing.txt']}" for n in range(60)}
    uri = documents(files, LOG_DAYS)
    host, name = cluster.group("workers")[0], cluster.names("workers")[0]
    slot = f"{name}:0"
    job = operator.submit(uri, "testinfra-drain")
    wait_for(lambda: busy(cluster, slot), 120, f"{slot} to take a shard", lambda: operator.run("show", job))
    try:
        host.check_output("systemctl stop semantik-worker@0")
        shown = operator.wait(job, 400)
    finally:
        host.check_output("systemctl start semantik-worker@0")
    assert shown["state"] == "completed", shown
    table = chunk_table(cluster, "testinfra-drain")
    counts = rows(
        cluster,
        "SELECT count(*), count(*) FILTER (WHERE d.state = 'embedded'), count(*) FILTER (WHERE d.chunks = "
        f"(SELECT count(*) FROM {table} k WHERE k.document_id = d.id)) "
        "FROM documents d JOIN collections c ON c.id = d.collection_id WHERE c.name = 'testinfra-drain'",
    )
    assert counts == [f"{len(files)}|{len(files)}|{len(files)}"]
    operator.run("collections", "drop", "testinfra-drain", "--yes")
    later = operator.submit(uri, "testinfra-drain-again")
    wait_for(
        lambda: busy(cluster, slot),
        120,
        f"{slot} to take a shard after its start",
        lambda: operator.run("show", later),
    )
    operator.run("cancel", later)
    assert operator.wait(later)["state"] == "cancelled"
    operator.run("collections", "drop", "testinfra-drain-again", "--yes")


def test_wrong_input_is_one_line_and_no_row(cluster: Cluster, operator: Operator) -> None:
    before = rows(cluster, "SELECT count(*) FROM jobs")
    for arguments in (
        ["submit", "/srv/documents/no-such-folder", "--collection", "testinfra-wrong"],
        ["search", "no-such-collection", "question"],
        ["watch", "00000000-0000-4000-8000-000000000000"],
        ["submit", "/srv/documents", "--collection", "Not A Name"],
    ):
        result = operator.attempt(*arguments)
        assert result.rc != 0, arguments
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert "Traceback" not in result.stderr
    assert rows(cluster, "SELECT count(*) FROM jobs") == before
    assert rows(cluster, "SELECT name FROM collections WHERE name = 'testinfra-wrong'") == []


@pytest.mark.unit("redis-server.service", *UNITS)
def test_job_submitted_while_redis_is_down_starts_when_it_is_back(
    cluster: Cluster, operator: Operator, documents: Put
) -> None:
    uri = documents(SUBJECTS)
    cluster.redis.check_output("systemctl stop redis-server")
    try:
        result = operator.attempt("submit", uri, "--collection", "testinfra-redis", "--json")
    finally:
        cluster.redis.check_output("systemctl start redis-server")
    assert result.rc == 0, result.stderr
    assert "redis" in result.stderr.lower(), "the command did not say that Redis is down"
    assert operator.wait(json.loads(result.stdout)["job"]["id"])["state"] == "completed"
    operator.run("collections", "drop", "testinfra-redis", "--yes")


def busy(cluster: Cluster, slot: str) -> bool:
    """Tell whether a slot holds a shard now."""
    return rows(cluster, f"SELECT count(*) FROM shards WHERE state = 'running' AND slot = '{slot}'") != ["0"]


def chunk_table(cluster: Cluster, collection: str) -> str:
    """Return the table that holds a collection's chunks."""
    return "chunks_" + rows(cluster, f"SELECT id FROM collections WHERE name = '{collection}'")[0]
