"""The Parquet file: what is written comes back, to any reader, in memory that does not grow with it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import semantik
from semantik import vectors
from semantik.engine import Row
from semantik.exceptions import NotFound, Refused, SemantikError

DIM = 8
HEADER = {"format": vectors.FORMAT, "model": "tiny"}


def rows(count: int, *, seed: int = 1) -> list[tuple[str, str, Row]]:
    draw = np.random.default_rng(seed)
    return [
        (
            f"/srv/{at // 10:06}",
            "ab" * 32,
            Row(
                at // 10,
                at % 10,
                f"text {at} \N{SNOWMAN}",
                f"page {at}" if at % 2 else None,
                at,
                draw.standard_normal(DIM).astype(np.float16),
            ),
        )
        for at in range(count)
    ]


def write(path: Path, *tables: pa.Table, dim: int = DIM) -> Path:
    with vectors.replacing(path, path.with_suffix(".draft")) as file:
        vectors.write(file, tables, dim, HEADER)
    return path


def test_rows_come_back_as_they_were_to_any_reader(tmp_path: Path) -> None:
    given = rows(25)
    path = write(tmp_path / "v.parquet", vectors.table(given, DIM))
    assert not (tmp_path / "v.draft").exists()
    found = pq.read_table(path)
    assert found.schema.field("embedding").type == pa.list_(
        pa.field("element", pa.float32(), nullable=False), DIM
    )
    for (uri, digest, row), line in zip(given, found.to_pylist(), strict=True):
        assert np.array_equal(np.array(line.pop("embedding"), np.float32), row.vector.astype(np.float32))
        assert line == {
            "document": uri,
            "ordinal": row.ordinal,
            "place": row.place,
            "text": row.text,
            "token_count": row.token_count,
            "content_hash": digest,
        }
    assert vectors.read_header(path) == HEADER


def test_zero_bits_of_float32_cost_little(tmp_path: Path) -> None:
    """What stands in the file for a vector is nearer to two bytes per dimension than to four."""
    wide = 384
    draw = np.random.default_rng(2)
    given = [
        ("/a", "00", Row(0, at, "", None, 1, draw.standard_normal(wide).astype(np.float16)))
        for at in range(2_000)
    ]
    path = write(tmp_path / "v.parquet", vectors.table(given, wide), dim=wide)
    assert path.stat().st_size < 2.2 * wide * len(given)


def test_how_rows_arrive_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "ROW_GROUP", 7)
    given = rows(40)
    whole = write(tmp_path / "whole", vectors.table(given, DIM))
    pieces = [vectors.table(given[start:end], DIM) for start, end in ((0, 3), (3, 3), (3, 30), (30, 40))]
    assert write(tmp_path / "pieces", *pieces).read_bytes() == whole.read_bytes()
    with pq.ParquetFile(whole) as file:
        lengths = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
    assert lengths == [7, 7, 7, 7, 7, 5]
    assert pa.concat_tables(vectors.read(whole)).equals(vectors.table(given, DIM))


def test_no_rows_are_a_file_too(tmp_path: Path) -> None:
    path = write(tmp_path / "none.parquet", vectors.table([], DIM))
    assert pq.read_table(path).num_rows == 0
    assert vectors.nearest(path, np.ones(DIM, np.float32), 3) == []


def test_nearest_is_exact_and_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "ROW_GROUP", 16)
    given = rows(150)
    path = write(tmp_path / "v.parquet", vectors.table(given, DIM))
    question = np.random.default_rng(3).standard_normal(DIM).astype(np.float32)
    matrix = np.stack([row.vector for _, _, row in given]).astype(np.float32)
    cosines = matrix @ question / np.linalg.norm(matrix, axis=1) / np.linalg.norm(question)
    best = np.argsort(-cosines)[:20]
    hits = vectors.nearest(path, question, 20)
    assert [(hit.uri, hit.ordinal, hit.text) for hit in hits] == [
        (given[at][0], given[at][2].ordinal, given[at][2].text) for at in best
    ]
    assert np.allclose([hit.score for hit in hits], cosines[best], atol=1e-6)
    assert [hit.place for hit in hits] == [given[at][2].place or "" for at in best]


def test_equal_scores_keep_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "ROW_GROUP", 4)
    same = [(f"/{at}", "00", Row(at, 0, "", None, 1, np.ones(DIM, np.float16))) for at in range(9)]
    path = write(tmp_path / "v.parquet", vectors.table(same, DIM))
    hits = vectors.nearest(path, np.ones(DIM, np.float32), 6)
    assert [hit.uri for hit in hits] == [f"/{at}" for at in range(6)]


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist: 'semantik embed"):
        vectors.read_header(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(Refused, match="cannot be read as Parquet"):
        vectors.read_header(tmp_path / "text.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(Refused, match="not one that 'semantik embed' wrote"):
        vectors.read_header(tmp_path / "other.parquet")
    newer = pa.table({"x": [1]}).replace_schema_metadata(
        {b"semantik": json.dumps({"format": 99, "release": "9.9"})}
    )
    pq.write_table(newer, tmp_path / "newer.parquet")
    with pytest.raises(Refused, match=r"is of format 99, this release knows 1: .*9\.9"):
        vectors.read_header(tmp_path / "newer.parquet")


def test_another_models_question_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", vectors.table(rows(3), DIM))
    with pytest.raises(Refused, match=r"has 5 dimensions, those of .* have 8"):
        vectors.nearest(path, np.ones(5, np.float32), 1)


def test_without_room_nothing_is_left_and_the_old_file_stays(tmp_path: Path) -> None:
    """The limit on a file's size stands for the end of a disk: the same error comes from the same call."""
    path = write(tmp_path / "v.parquet", vectors.table(rows(3), DIM))
    before = path.read_bytes()
    code = """
import resource, signal, sys
from pathlib import Path
from semantik import vectors
from test_vectors import rows, write
from semantik.exceptions import SemantikError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    write(Path(sys.argv[1]), vectors.table(rows(5_000), 8))
except SemantikError as error:
    print(error)
"""
    apps = [str(Path(semantik.__file__).parents[1]), str(Path(__file__).parent)]
    told = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={"PYTHONPATH": ":".join(apps)},
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    assert "v.parquet cannot be written: File too large; what was embedded so far is kept" in told
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["v.parquet"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def fail() -> None:
        with vectors.replacing(tmp_path / "v", tmp_path / "d"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SemantikError, match=r"cannot be written: No space left on device; .*make room"):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("work", ["merge", "search"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, work: str) -> None:
    """Ten times the parts, at most a tenth more memory; counted by the kernel in processes of their own."""
    for at in range(20):
        given = [
            (f"/{at:03}", "00", Row(0, n, f"{n} " * 100, None, 1, np.full(256, n % 7, np.float16)))
            for n in range(4_000)
        ]
        write(tmp_path / f"{at:03}.part", vectors.table(given, 256), dim=256)
    code = """
import sys
from pathlib import Path
import numpy as np
from semantik import vectors
def read():
    for part in sorted(Path(sys.argv[1]).glob("*.part"))[: int(sys.argv[2])]:
        yield from vectors.read(part)
output = Path(sys.argv[1]) / f"{sys.argv[2]}.merged"
if sys.argv[3] == "merge":
    with vectors.replacing(output, output.with_suffix(".draft")) as file:
        vectors.write(file, read(), 256, {"format": 1})
else:
    assert len(vectors.nearest(output, np.ones(256, np.float32), 100)) == 100
high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(high.split()[1])
"""

    def peak(parts: int, what: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(parts), what],
            env={"PYTHONPATH": str(Path(semantik.__file__).parents[1])},
            text=True,
            capture_output=True,
            check=True,
        )
        return int(done.stdout)

    if work == "search":
        for parts in (2, 20):
            peak(parts, "merge")
    assert peak(20, work) <= 1.1 * peak(2, work)
