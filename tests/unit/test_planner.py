"""How large a shard is, and which listings are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from semantik.exceptions import NotFound, Refused
from semantik.planner import SHORTEST_SHARD, SPREAD, _found, _guard, _Job, shard_bytes


def test_a_large_job_has_shards_of_so_many_seconds() -> None:
    assert shard_bytes(10**12, rate=1000.0, slots=4, seconds=45.0) == 45_000


def test_a_small_job_is_spread_over_all_slots() -> None:
    assert shard_bytes(80_000, rate=1000.0, slots=4, seconds=45.0) == 80_000 / (4 * SPREAD)


def test_a_small_job_for_one_slot_is_one_shard() -> None:
    assert shard_bytes(40_000, rate=1000.0, slots=1, seconds=45.0) == 40_000
    assert shard_bytes(10**12, rate=1000.0, slots=1, seconds=45.0) == 45_000


def test_a_tiny_job_is_not_cut_finer_than_is_worth_it() -> None:
    assert shard_bytes(100, rate=1000.0, slots=4, seconds=45.0) == 1000 * SHORTEST_SHARD
    assert shard_bytes(0, rate=1000.0, slots=0, seconds=2.0) == 2000


def job(*, allow_removal: bool = False, uri: str = "/srv/documents") -> _Job:
    return _Job("id", 1, uri, 7, allow_removal, 1)


@pytest.mark.parametrize(
    ("listed", "known", "gone", "complete"),
    [(10, 0, 0, True), (5, 10, 5, True), (1, 10, 10, False), (3, 3, 0, True)],
)
def test_listings_that_are_taken(listed: int, known: int, gone: int, complete: bool) -> None:
    _guard(job(), listed, known, gone, complete)


def test_an_empty_listing_and_one_with_more_than_half_gone_are_refused() -> None:
    with pytest.raises(NotFound, match=r"is empty.*--allow-removal"):
        _guard(job(), 0, 0, 0, True)
    with pytest.raises(Refused, match=r"6 of the 10.*--allow-removal"):
        _guard(job(), 4, 10, 6, True)
    _guard(job(allow_removal=True), 0, 10, 10, True)


def test_a_source_that_is_gone_lists_as_empty_where_its_removal_is_meant(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    for uri in (str(share / "a.txt"), "memory://nothing/here"):
        with pytest.raises(NotFound):
            list(_found(job(uri=uri)))
    assert list(_found(job(uri="memory://nothing/here", allow_removal=True))) == []
    with pytest.raises(NotFound, match="is the share mounted"):
        list(_found(job(uri=str(share / "a.txt"), allow_removal=True)))
    (share / "b.txt").write_text("")
    assert list(_found(job(uri=str(share / "a.txt"), allow_removal=True))) == []


def test_a_source_that_cannot_be_read_never_lists_as_empty() -> None:
    with pytest.raises(NotFound, match="nosuch"):
        list(_found(job(uri="nosuch://bucket", allow_removal=True)))
