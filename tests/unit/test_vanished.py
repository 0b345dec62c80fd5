"""Documents that a worker does not find: failed with a reason, never taken for removed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from semantik.engine import Finished, Source
from semantik.runner import Runner


def test_what_one_host_does_not_find_was_not_removed() -> None:
    documents = [Source(0, "/srv/share/here.txt", None, 1), Source(1, "/srv/share/sub/hidden.txt", None, 1)]
    finished = [Finished(0, "embedded", chunks=1), Finished(1, "removed")]
    host = cast(Any, SimpleNamespace(settings=SimpleNamespace(host="gpu1")))
    here, hidden = Runner._not_found(host, finished, documents)
    assert here is finished[0]
    assert (hidden.outcome, hidden.key) == ("failed", 1)
    assert hidden.error is not None
    assert hidden.error.startswith("listed, but not found on gpu1: is /srv/share/sub mounted there?")
