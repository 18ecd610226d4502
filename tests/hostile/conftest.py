"""Every test of this folder carries the marker `hostile`."""

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and only them: the hook is called with all."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("hostile")
