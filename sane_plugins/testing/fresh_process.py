"""What is done in a process of its own, where nothing was imported before and sets have another order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sane_plugins.testing.contract import ContractError

_SAVE = """
import importlib, sys
from sane_plugins.testing import example_graphs, host_with
host_with(importlib.import_module(sys.argv[1])).save(example_graphs()[0], sys.argv[2])
"""


def run_python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process, which finds modules as this one does."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a process wrote to standard error: mostly, its exception."""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def is_importable(plugin: Any) -> bool:
    """Return whether a plugin is a module, which another process can import."""
    return hasattr(plugin, "__spec__")


def save_in_a_fresh_process(plugin: Any, path: Path) -> None:
    """Save the first of `example_graphs` in another process. Raises `ContractError` where that fails."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = run_python(_SAVE, plugin.__name__, str(path), PYTHONHASHSEED=seed)
    if done.returncode:
        raise ContractError(
            f"plugin {plugin.__name__} does not save in a process of its own: {last_line(done)}"
        )
