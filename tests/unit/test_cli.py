"""The command as people and programs meet it, as far as it goes without a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

import semantik.cli
from semantik import __version__
from semantik.cli import output
from semantik.cli.embed import lines
from semantik.cli.jobs import absolute, by_reason
from semantik.cli.watch import EXIT, JsonLines, Lines, describe, summary
from semantik.parts import Counts, Remark, Summary
from semantik.progress import Progress

APP = str(Path(semantik.cli.__file__).parents[2])
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": APP,
    "CREDENTIALS_DIRECTORY": "/nonexistent",
    "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
    "SEMANTIK_DATABASE_URL": "postgresql://127.0.0.1:1/none",
}


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "semantik.cli", *arguments],
        env={**ENVIRONMENT, **env},
        text=True,
        capture_output=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_version_and_help() -> None:
    assert run("--version").stdout == f"semantik {__version__}\n"
    told = run("--help")
    assert told.returncode == 0
    for command in (
        "submit", "watch", "jobs", "show", "retry", "pause", "resume", "cancel", "collections", "search",
        "embed", "check",
    ):  # fmt: skip
        assert f"\n  {command}" in told.stdout


def test_starting_imports_nothing_heavy() -> None:
    code = "import sys, semantik.cli; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, text=True, capture_output=True, check=True
    ).stdout.split()
    assert not {"psycopg", "celery", "kombu", "redis", "numpy", "torch", "fsspec", "rich.progress"} & set(
        modules
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["submit", "/srv"], "Missing option '--collection'"),
        (["submit", "docs", "--collection", "x"], "'docs' is relative"),
        (
            ["submit", "/srv", "--collection", "x", "--priority", "high"],
            "'high' is not a valid integer range",
        ),
        (["search", "x", "  "], "is empty"),
        (["search", "x", "y", "-n", "0"], "0 is not in the range"),
        (["embed", "", "-o", "vectors.parquet"], "'DIR': is empty"),
        (["show"], "Missing argument 'JOB'"),
        (["retry"], "Missing argument 'JOB'"),
        (["pause", "one", "two"], "Got unexpected extra argument (two)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ("/srv/documents", "such as /srv/documents/manuals"),
        ("/mnt", "such as /mnt/manuals"),
        ("/root", "an absolute path such as /srv/documents/NAME"),
        ("/home/ann/work", "an absolute path such as /srv/documents/NAME"),
    ],
)
def test_a_relative_path_is_answered_with_one_that_workers_may_have(
    here: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path(here))
    assert absolute("./manuals") == words


def test_a_source_that_does_not_exist_is_one_line_with_what_to_do() -> None:
    result = run("submit", "/no/such/folder", "--collection", "x")
    assert result.returncode == 1
    line = one_line(result)
    assert line.startswith("semantik: /no/such/folder does not exist on this host: give a folder")
    assert "same path" in line


def test_a_source_that_is_gone_may_be_submitted_where_its_removal_is_meant() -> None:
    result = run("submit", "/no/such/folder", "--collection", "x", "--allow-removal")
    assert "PostgreSQL cannot be reached" in one_line(result), "it went no further than the source"


def test_a_url_that_nothing_reads_is_refused() -> None:
    result = run("submit", "gopher://host/folder", "--collection", "x")
    assert result.returncode == 1
    assert "nothing here reads gopher:// URLs" in one_line(result)


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "/tmp", "--collection", "x"],
        ["jobs"],
        ["watch", "abc"],
        ["show", "abc", "--json"],
        ["cancel", "abc"],
        ["retry", "abc"],
        ["retry", "abc", "/srv/a.pdf", "/srv/b.pdf"],
        ["pause", "abc", "--json"],
        ["resume", "abc"],
        ["collections"],
        ["collections", "drop", "x", "--yes"],
    ],
    ids=" ".join,
)
def test_without_postgresql_the_reason_is_one_line(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 1
    line = one_line(result)
    assert line.startswith("semantik: PostgreSQL cannot be reached (")
    assert "semantik check" in line


def test_searching_without_redis_says_so() -> None:
    result = run("search", "x", "why?")
    assert result.returncode == 1
    assert one_line(result).startswith("semantik: the question cannot be embedded: Redis cannot be reached (")


def test_a_missing_setting_is_one_line() -> None:
    result = run("jobs", SEMANTIK_DATABASE_URL="")
    assert result.returncode == 1
    assert "SEMANTIK_DATABASE_URL is not set" in one_line(result)


def test_a_traceback_is_shown_only_when_it_is_asked_for() -> None:
    result = run("jobs", SEMANTIK_DEBUG="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "DatabaseUnavailable" in result.stderr


def test_an_unexpected_error_is_one_line_that_names_the_way_to_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("first\nsecond")

    monkeypatch.setattr(semantik.cli.cli, "main", broken)
    assert semantik.cli.main([]) == 1
    said = capsys.readouterr().err
    assert said == "semantik: unexpected error: ValueError: first second; SEMANTIK_DEBUG=1 shows where\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()], ids=["interrupt", "abort"])
def test_ctrl_c_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(semantik.cli.cli, "main", interrupted)
    assert semantik.cli.main([]) == 130
    assert capsys.readouterr().err == "semantik: interrupted\n"


def test_check_reports_every_part_of_a_cluster_that_is_not_there() -> None:
    env = {"SEMANTIK_EXPECTED_SLOTS": "gpu1:0", "SEMANTIK_FLOWER_PORT": "1", "SEMANTIK_NGINX": "127.0.0.1:1"}
    result = run("check", **env)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert [line[:3] for line in lines] == ["BAD"] * len(lines)
    names = [line[5:19].strip() for line in lines]
    assert names == [
        "redis",
        "postgresql",
        "planner",
        "scheduler",
        "query gpu1",
        "slot gpu1:0",
        "flower",
        "nginx",
    ]


@pytest.mark.parametrize("arguments", [["--json", "check"], ["check", "--json"]], ids=" ".join)
def test_json_means_the_same_before_and_after_the_subcommand(arguments: list[str]) -> None:
    result = run(*arguments, SEMANTIK_FLOWER_PORT="1")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert report["parts"][0]["name"] == "redis"
    assert set(report["parts"][0]) == {"name", "ok", "detail", "trouble"}


def test_names_of_documents_cannot_write_to_the_terminal() -> None:
    assert output.printable("a\x1b[31mb\nc\udcffd") == "a�[31mb c�d"


def test_tables_are_aligned_by_what_a_terminal_shows(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["NAME", "N"], [["日本", 7], ["b", 1234]], right=[1])
    assert capsys.readouterr().out.splitlines() == ["NAME     N", "日本     7", "b     1234"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (1500, "25 min"), (7380, "2 h 3 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_excerpts_end_at_a_word() -> None:
    assert output.shorten("one two three", 9) == "one two…"
    assert output.shorten("one", 9) == "one"


def progress(state: str = "running", done: int = 5, **more: object) -> Progress:
    values = {
        "state": state,
        "documents_total": 10,
        "documents_done": done,
        "failed": 1,
        "skipped": 0,
        "removed": 0,
        "chunks": 1,
        "tokens": 2000,
        "truncated_tokens": 0,
        "tokens_per_second": 1234.5,
        "seconds_left": 200.0,
        "error": None,
    }
    return Progress(**(values | more))  # type: ignore[arg-type]


def test_progress_on_one_line() -> None:
    assert describe(progress()) == (
        "running: 5/10 documents, 1 chunk, 2,000 tokens, 1,234 tokens/s, 3 min 20 s left"
    )
    assert describe(progress("planning")) == "planning"
    assert describe(progress("completed_with_errors", 10)) == (
        "completed with errors: 10/10 documents, 1 chunk, 2,000 tokens"
    )
    assert describe(progress("queued", paused=True)) == "queued, paused"
    assert describe(progress(paused=True, seconds_left=None, tokens_per_second=0.0)) == (
        "running, paused: 5/10 documents, 1 chunk, 2,000 tokens"
    )


def test_one_document_is_no_documents() -> None:
    assert describe(progress("completed", 1, documents_total=1, tokens=1)) == (
        "completed: 1/1 document, 1 chunk, 1 token"
    )


def test_a_job_that_failed_in_planning_shows_its_reason_and_no_counts() -> None:
    ended = progress("failed", 0, documents_total=0, failed=0, chunks=0, tokens=0, error="/srv/x is empty")
    assert describe(ended) == "failed"
    assert summary(ended, 0) == "failed: /srv/x is empty"


def test_a_job_that_ended_after_its_listing_shows_what_became_of_it() -> None:
    ended = progress("completed_with_errors", 10)
    assert summary(ended, 3) == (
        "completed with errors: 9 embedded, 1 failed, 3 unchanged; 1 chunk, 2,000 tokens"
    )


def test_many_failures_are_counted_by_their_reason() -> None:
    assert by_reason(["broken PDF"] * 2 + ["not found on gpu2"] * 437) == [
        "437 x not found on gpu2",
        "2 x broken PDF",
    ]
    assert by_reason([f"reason {index}" for index in range(12)])[-1] == "2 x 2 other reasons: --all"


def test_embed_says_how_many_failures_it_does_not_show() -> None:
    def said(failed: int) -> list[str]:
        shown = [Remark(f"/srv/{index}", "failed", "broken PDF") for index in range(2)]
        quiet = Remark("/srv/empty", "embedded", "holds no text")
        counts = Counts(documents=1_300, embedded=5, failed=failed)
        ended = Summary("v.parquet", "completed_with_errors", False, counts, remarks=[*shown, quiet])
        return [line for line in lines(ended) if line.startswith("  ")]

    assert said(2) == ["  /srv/0: broken PDF", "  /srv/1: broken PDF"]
    assert said(1_295)[2:] == ["  ... and 1,293 more failed"]


def test_lines_come_on_change_and_not_too_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Lines() as view:
        view.show(progress())
        view.show(progress())  # nothing new
        view.show(progress(done=6))  # new, too soon
        now += 6
        view.show(progress(done=7))
        view.show(progress(done=7, paused=True))  # a new state is always said
        view.show(progress("completed", 10))
    shown = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert [line.split(" documents")[0] for line in shown] == [
        "running: 5/10",
        "running: 7/10",
        "running, paused: 7/10",
        "completed: 10/10",
    ]


def test_json_lines_are_whole_objects_on_change(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines("some-job") as view:
        view.show(progress())
        view.show(progress())
        view.show(progress(done=6))
        view.note("PostgreSQL is back")
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [(line["job_id"], line["documents_done"]) for line in lines] == [("some-job", 5), ("some-job", 6)]
    assert captured.err == "semantik: PostgreSQL is back\n"


def test_every_final_state_has_an_exit_status() -> None:
    assert EXIT == {"completed": 0, "completed_with_errors": 3, "failed": 1, "cancelled": 1}


def test_a_collection_is_searched_from_a_directory_that_this_user_may_not_look_into(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", denied)
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    assert semantik.cli.main(["search", "manuals", "a question"]) == 1
    said = capsys.readouterr().err
    assert "Permission denied" not in said
    assert "is not set" in said, "it asks the cluster"
