"""Fixtures for tests of plugins, and of programs that use them.

pytest loads this module in every run, by the entry point `pytest11`; all else is imported when a
fixture is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sane_plugins.host import Host
    from sane_plugins.zoo import Zoo


@pytest.fixture
def sane_host() -> Host:
    """Return a host with all installed plugins; its `problems` are those of this test alone."""
    from sane_plugins.host import Host

    return Host.installed()


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Return a zoo of small networks with a property `scale`; see `sane_plugins.testing.write_tiny_zoo`."""
    from sane_plugins.testing import write_tiny_zoo

    return write_tiny_zoo(tmp_path_factory.mktemp("sane") / "tiny")
