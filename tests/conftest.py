"""What the suites have in common on the command line."""

from __future__ import annotations

import os

import pytest

DEFAULT_INVENTORY = "inventories/lab"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the cluster to check."""
    parser.addoption(
        "--inventory",
        default=os.environ.get("SEMANTIK_INVENTORY", DEFAULT_INVENTORY),
        help=f"the cluster for tests/test_celery_setup.py (SEMANTIK_INVENTORY; {DEFAULT_INVENTORY})",
    )
