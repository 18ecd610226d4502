"""Plugins that are installed for one test, and a configuration of its own."""

import sys
import textwrap

import pytest


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SANE_PLUGINS_CONFIG", str(tmp_path / "config"))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution with one plugin module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name: str, code: str, point: str = "") -> None:
        text = "from sane_plugins import hookimpl\n" + textwrap.dedent(code)
        (tmp_path / f"{name}.py").write_text(text)
        (info := tmp_path / f"{name}-1.0.dist-info").mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sane_plugins]\n{name} = {point or name}\n")

    yield add
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)
