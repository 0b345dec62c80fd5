"""A task of one's own, as docs/tasks.md shows it, is loaded by a worker and answers."""

from __future__ import annotations

from pathlib import Path

from cluster import APP, Cluster
from services import PATIENCE

MODULE = "semantik.own.similarity"


def test_a_task_of_ones_own_runs_where_semantik_imports_names_it(cluster: Cluster) -> None:
    env = cluster.environment(
        "worker", SEMANTIK_ROLE="query", SEMANTIK_IMPORTS=MODULE, RUNTIME_DIRECTORY=cluster.runtime("own")
    )
    cluster.start("own", cluster._celery("own", "own@here"), env)
    try:
        alike, unlike = (
            cluster.app.send_task(MODULE, args=["a loaf of bread", text], queue="own").get(
                timeout=60 * PATIENCE
            )
            for text in ("baking with yeast", "the stock exchange in Paris")
        )
    finally:
        cluster.stop("own")
    assert -1 <= unlike < alike < 1


def test_the_page_shows_the_module_that_is_tested() -> None:
    page = (APP.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
    shown = page.partition("```python\n")[2].partition("```")[0]
    module = Path(APP / "semantik" / "own" / "similarity.py").read_text(encoding="utf-8")
    assert shown.partition("def similarity")[2] == module.partition("def similarity")[2]
