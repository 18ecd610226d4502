"""A plugin's import takes no time: hosts load all plugins, and show their help."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from sane_plugins.testing.contract import ContractError

_HEAVY = ("torch", "numpy")  # whatever computes imports one of them
_IMPORT = """
import importlib, sys
importlib.import_module(sys.argv[1])
sys.stderr.write("\\n" + ",".join(x for x in sys.argv[2:] if x in sys.modules))
"""


def check_light_import(plugin: Any) -> None:
    """Raise `ContractError` if a plugin's module imports torch or numpy, prints, or fails to import.

    It is imported in a process of its own, where it must be found as it is here.
    """
    name = plugin if isinstance(plugin, str) else module_of(plugin)
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, name, *_HEAVY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it exits"])[-1]
        raise ContractError(f"{name} does not import in a process of its own: {last}")
    if done.stdout.strip():
        raise ContractError(f"{name} prints {done.stdout.strip()[:60]!r} when it is imported")
    if heavy := done.stderr.rpartition("\n")[2]:
        raise ContractError(
            f"{name} imports {heavy}: import it inside the hooks, after they declined"
        )


def module_of(plugin: Any) -> str:
    """Return the name of the module that a plugin is, or that its class is in."""
    is_module = hasattr(plugin, "__spec__")
    return str(plugin.__name__ if is_module else type(plugin).__module__)
