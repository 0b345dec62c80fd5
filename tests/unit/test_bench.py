"""The bench's arithmetic and its table: what it says must follow from what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from semantik_bench import documents, planning, processes, race, report, services, stats
from semantik_bench.contenders import CONTENDERS, DEFAULT, FORWARD, PARQUET, POSTGRES, Contender
from semantik_bench.errors import BenchError
from semantik_bench.processes import Worker
from semantik_bench.race import Entry, Race
from semantik_bench.workers import protocol

KNOWN = {contender.name: contender for contender in CONTENDERS}


def entry(name: str, *seconds: float, cosine: float = 1.0, **more: Any) -> Entry:
    runs = [{"seconds": each, "cpu_seconds": 2 * each, "model_tokens": 1250, **more} for each in seconds]
    return Entry(KNOWN[name], runs={"long": runs}, cosines={"long": cosine})


def raced(*entries: Entry) -> Race:
    made = Race.__new__(Race)
    made.entries = {one.contender.name: one for one in entries}
    return made


# --- arithmetic ---


def test_a_ratio_is_taken_round_by_round() -> None:
    # The second round was twice as slow for both: each ratio is 2, that of the medians would not show it.
    assert stats.paired_ratio([100, 50, 100], [50, 25, 50]) == 2.0


def test_a_ratio_wants_as_many_rounds_on_both_sides() -> None:
    with pytest.raises(ValueError):
        stats.paired_ratio([1, 2], [1])


def test_spread_is_relative_to_the_median() -> None:
    assert stats.spread([90, 100, 120]) == pytest.approx(0.3)


def test_padding_is_a_share_of_what_the_model_computes() -> None:
    assert stats.padding_waste(1250, 1000) == pytest.approx(0.2)
    assert stats.padding_waste(None, 1000) is None


def test_the_best_batch_size_is_the_one_with_the_best_of_its_runs() -> None:
    assert stats.best({8: [10, 30], 16: [25, 26], 32: [5, 5]}) == 8


def test_the_least_cosine_is_found_whatever_the_lengths() -> None:
    left = np.array([[1.0, 0.0], [3.0, 4.0]])
    right = np.array([[5.0, 0.0], [4.0, 3.0]])
    assert stats.min_cosine(left, right) == pytest.approx(24 / 25)


def test_a_vector_that_is_not_finite_is_no_match() -> None:
    assert np.isnan(stats.min_cosine(np.array([[np.nan, 1.0]]), np.array([[1.0, 1.0]])))


def test_vectors_of_other_chunks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        stats.min_cosine(np.ones((2, 3)), np.ones((3, 3)))


# --- headlines ---


def test_headlines_follow_from_the_rounds() -> None:
    made = raced(
        entry(DEFAULT, 2.0, 2.2, 2.0),
        entry("onnx", 1.6, 1.6, 1.6),
        entry("openvino", 1.1, 1.0, 1.2),
        entry("openvino_default", 0.5, 0.5, 0.5),
        entry(FORWARD, 1.0, 1.1, 1.0, cosine=0.9999999),
        entry(PARQUET, 1.0, 1.1, 1.25, cosine=0.9999998),
        entry(POSTGRES, 1.25, 1.375, 1.25, cosine=0.9999997, worker_seconds=1.0),
    )
    found = report.headlines(made, tokens=1000)
    assert found["engine_vs_encode_default"] == pytest.approx(2.0)
    # In reduced precision OpenVINO is faster still, and no peer at equal precision.
    assert found["best_peer"] == "openvino"
    assert found["engine_vs_best_peer"] == pytest.approx(1.1)
    assert found["parquet_efficiency"] == pytest.approx(1.0)
    assert found["postgres_efficiency"] == pytest.approx(0.8)
    assert found["postgres_worker_efficiency"] == pytest.approx(1.0)
    assert found["min_cosine_fp32"] == 0.9999997


def test_what_was_not_measured_has_no_figure() -> None:
    broken = entry(POSTGRES, 1.0)
    broken.error = "needs root"
    found = report.headlines(raced(entry(DEFAULT, 2.0), entry(FORWARD, 1.0), broken), tokens=1000)
    assert found["postgres_efficiency"] is None
    assert found["parquet_efficiency"] is None
    assert found["engine_vs_best_peer"] is None
    assert found["engine_vs_encode_default"] == 2.0


def test_a_peer_that_failed_is_not_the_best() -> None:
    failed = entry("onnx", 0.1)
    failed.error = "ended with status 1"
    assert race.best_peer([failed, entry("fastembed", 1.0)], "long", 1000).contender.name == "fastembed"


def test_the_share_of_sql_is_what_the_workers_logged_of_this_job(tmp_path: Path) -> None:
    line = "INFO semantik.runner: committed job={} shard=1 seconds={} write_seconds={} commit_seconds={}\n"
    (tmp_path / "worker0.log").write_text(line.format("a", 30, 0.25, 0.5) + line.format("b", 9, 9, 9))
    (tmp_path / "worker1.log").write_text(line.format("a", 20, 0.05, 0.2) + "ready\n")
    found = services.sql_waits(SimpleNamespace(directory=tmp_path), "a")
    assert found["write_seconds"] == pytest.approx(0.3)
    assert found["commit_seconds"] == pytest.approx(0.7)
    assert found["sql_wait_share"] == pytest.approx(0.02)
    run = entry(POSTGRES, 60.0, worker_seconds=55.0, sql_wait_share=0.02)
    assert report.headlines(raced(run), tokens=1000)["sql_wait_share"] == 0.02


# --- the table ---


def test_the_table_has_medians_and_says_why_a_row_is_empty() -> None:
    gone = Entry(KNOWN["infinity"], error="pip cannot install infinity: no matching distribution")
    reduced = entry("openvino_default", 0.5, cosine=0.9991, precision="bf16")
    rows = [report.row(one, entry(DEFAULT, 2.0), "long", 1000) for one in (reduced, gone)]
    first, line, bf16, none = report.table(rows)
    assert first.startswith("| contender ") and set(line) <= {"|", "-"}
    assert len({len(text) for text in (first, line, bf16, none)}) == 1
    cells = [cell.strip() for cell in bf16.strip("|").split("|")]
    assert cells[0].endswith("(bf16: reduced)")
    assert cells[1:4] == ["2,000", "0%", "4.00"]
    assert cells[5:7] == ["1.000", "20.0%"]
    assert cells[8] == "0.9991000"
    assert "no matching distribution" in none


def test_the_report_says_what_was_and_what_was_not_measured(tmp_path: Path) -> None:
    slow = entry(POSTGRES, 2.0, worker_seconds=1.5, planning_seconds=0.5, shards=2, waits={"write": 0.25})
    made = raced(entry(DEFAULT, 2.0), entry(FORWARD, 1.0), slow)
    figures = report.headlines(made, tokens=1000)
    rows = [report.row(one, made.entries[DEFAULT], "long", 1000) for one in made.entries.values()]
    profile = {"chunks": 10, "tokens": 1000, "median_tokens": 100, "rows": rows}
    size = {"documents": 4, "tokens": 500, "seconds": 3.0, "peak_bytes": 700_000_000, "failed": 0}
    result = {
        **figures, "quick": True, "rounds": 1, "notes": ["a note"], "machine": report.machine(2),
        "documents": {"documents": 3, "kinds": {"html": 2, "pdf": 1}}, "profiles": {"long": profile},
        "headlines": list(figures), "memory": {"one": size, "ten": size, "ratio": 1.0},
        "chunking": {"chunks": 10, "equal": 9, "different": 0, "explained": {"a long word": 1}},
    }  # fmt: skip
    report.write(result, tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text())["engine_vs_encode_default"] == 2.0
    text = (tmp_path / "bench.md").read_text()
    for part in (
        "not for figures", "2 html, 1 pdf", "- a note", "stages waited for others: write 0.2 s",
        "to the first claim 0.5 s", "last commit 1.5 s, 2 shards",
        "4 documents of 500 tokens: 3.0 s, peak 700 MB", "9 of 10 equal, 0 different",
        "1 chunks: a long word",
    ):  # fmt: skip
        assert part in text, part
    cells = dict(
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.count("|") == 3
    )
    assert cells["postgres_efficiency"] == "0.500"
    assert cells["parquet_efficiency"] == "not measured"
    assert cells["min_cosine_fp32"] == "1.0000000"


# --- documents ---


def test_n_holds_the_largest_of_ten_n(tmp_path: Path) -> None:
    for number in range(47):
        (tmp_path / "corpus" / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / f"{number % 3}" / f"{number}.txt").write_bytes(b"x" * (number + 1))
    one, ten = documents.one_and_ten(tmp_path / "corpus", tmp_path / "out", quick=False)
    sizes = [
        sorted(path.stat().st_size for path in folder.rglob("*") if path.is_file()) for folder in (one, ten)
    ]
    assert [len(each) for each in sizes] == [4, 40]
    assert sizes[0][-1] == sizes[1][-1] == 47
    assert set(sizes[0]) < set(sizes[1])


def test_a_corpus_without_a_selected_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "debian-policy").mkdir()
    (tmp_path / "debian-policy" / "menu-policy.txt").write_text("menu")
    with pytest.raises(BenchError, match="packages have changed"):
        documents.select(tmp_path, tmp_path / "out", quick=True)


# --- processes ---

ECHO = """
from semantik_bench.workers.protocol import serve
import os, subprocess, sys
import numpy as np

def load(settings):
    print("noise on standard output")
    if settings.get("broken"):
        raise LookupError("no such model")
    kept = b"x" * settings["megabytes"] * 1000000

    def run(request):
        if request.get("burn"):
            subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
        if request.get("leave"):
            os._exit(7)
        return np.ones((2, 3)), {"seconds": 1.0, "kept": len(kept)}

    return run

serve(load)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    (tmp_path / "echo.py").write_text(ECHO)
    made: list[Worker] = []

    def make(**settings: Any) -> Worker:
        environment = {"PYTHONPATH": str(documents.ROOT / "bench"), "PATH": "/usr/bin:/bin"}
        command = [sys.executable, str(tmp_path / "echo.py")]
        made.append(Worker(command, {"megabytes": 1, **settings}, environment, tmp_path / "log"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_run_is_measured_with_its_children(worker: Any, tmp_path: Path) -> None:
    running = worker(megabytes=60)
    running.start()
    idle = running.run({})
    busy = running.run({"burn": True, "vectors": str(tmp_path / "vectors.npy")})
    assert busy["cpu_seconds"] > idle["cpu_seconds"] + 0.1
    assert running.tree_peak >= running.main_peak > 60_000_000
    assert np.load(tmp_path / "vectors.npy").dtype == np.float32


def test_a_contender_stands_still_between_its_runs(worker: Any) -> None:
    running = worker()
    running.start()
    running.run({})
    deadline = time.monotonic() + 10  # the signal is on its way, and the process must run once to take it
    while (state := processes._stat(running._process.pid)[0]) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state == "T"


def test_a_contender_that_cannot_load_says_why(worker: Any) -> None:
    with pytest.raises(BenchError, match="LookupError: no such model"):
        worker(broken=True).start()


def test_a_contender_that_dies_is_told_from_a_slow_one(worker: Any) -> None:
    running = worker()
    running.start()
    with pytest.raises(BenchError, match="ended with status 7"):
        running.run({"leave": True})


def test_closing_leaves_no_process(worker: Any) -> None:
    running = worker()
    running.start()
    pid = running._process.pid
    running.close()
    assert processes._stat(pid) == []


def test_a_stopped_contender_does_not_outlive_the_bench(worker: Any, tmp_path: Path) -> None:
    made = worker()
    script = (
        "import json, os, sys; from pathlib import Path; from semantik_bench.processes import Worker; "
        "made = Worker(*json.loads(sys.argv[1]), Path(sys.argv[2])); made.start(); made.run({}); "
        "print(made._process.pid, flush=True); os._exit(0)"
    )
    arguments = json.dumps([list(made.command), made.settings, made.environment])
    done = subprocess.run(
        [sys.executable, "-c", script, arguments, str(tmp_path / "log")],
        env=made.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while processes._stat(pid)[:1] not in ([], ["Z"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes._stat(pid)[:1] in ([], ["Z"])


def test_a_tree_knows_its_grandchildren() -> None:
    command = [sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '30'])"]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 20
        while len(processes.tree(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        found = processes.tree(process.pid)
        assert found[0] == process.pid and len(found) == 2
    finally:
        for pid in reversed(processes.tree(process.pid)):
            subprocess.run(["kill", str(pid)], check=False)
        process.wait()


# --- what workers share ---


def test_vectors_from_disk_come_in_the_order_of_the_chunks(tmp_path: Path) -> None:
    lines = [{"document": "a/b.txt", "ordinal": number, "text": "x"} for number in range(2)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"folder": str(tmp_path), "documents": "/docs"}
    vectors = np.array([[1.0], [2.0]])
    keys = [("/docs/a/b.txt", 1), ("/docs/a/b.txt", 0)]
    assert protocol.in_order(settings, "long", keys, vectors).tolist() == [[2.0], [1.0]]
    with pytest.raises(ValueError, match="1 chunks came out, 2 were prepared"):
        protocol.in_order(settings, "long", keys[:1], vectors[:1])


def test_all_contenders_have_names_of_their_own() -> None:
    assert len(KNOWN) == len(CONTENDERS)
    assert all(isinstance(contender, Contender) for contender in CONTENDERS)


# --- planning ---


def test_a_statement_is_told_by_its_first_words() -> None:
    assert planning._statement("-- why\nWITH cut AS (\n SELECT 1)") == "WITH cut"
    assert planning._statement("COPY listed FROM STDIN") == "COPY listed FROM"


def test_the_report_of_planning_has_both_sizes_and_the_ratio_of_their_peaks() -> None:
    sample = planning.Sample(1.2, "running", 1_000, 10**7, 10**7, 10**7, 10**7, 10**7, 10**6, 12, 2, 4)
    one = {
        "files": 1_000, "planned_seconds": 0.5, "files_per_second": 2_000.0, "shards": 2, "shards_done": 1,
        "window": 4, "sql_wait_share": 0.01, "peaks": {"in_flight": 4, "planner": 10**7},
        "table": [asdict(sample)],
    }  # fmt: skip
    ten = {**one, "files": 10_000, "peaks": {"in_flight": 4, "planner": 11 * 10**6}}
    told = planning.lines({"small": one, "large": ten, "ratios": {"in_flight": 1.0, "planner": 1.1}})
    assert told[0].startswith("1,000 files: planned in 0.5 s (2,000 files/s) as 2 shards; 1 were done")
    assert any(line.startswith("| planner ") and "1.100" in line for line in told)
