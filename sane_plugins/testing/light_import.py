"""A plugin's import takes no time: hosts load all plugins, and show their help."""

from __future__ import annotations

import json
from typing import Any

from sane_plugins.plugins import SLOW_SECONDS
from sane_plugins.testing.contract import ContractError
from sane_plugins.testing.fresh_process import last_line, run_python

HEAVY = ("torch", "numpy")
"""Modules that hosts do not wait for: whatever computes imports one of them."""
_TRIES = 2  # the first may wait for the disk
_IMPORT = """
import importlib, json, sys
from time import perf_counter
import sane_plugins
def waited():  # for a processor, as Linux tells: the second number, in nanoseconds
    try:
        with open("/proc/self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
def clock():
    while True:
        before, now = waited(), perf_counter()
        if waited() == before:  # it did not wait in between
            return now - before
started = clock()
importlib.import_module(sys.argv[1])
seconds = clock() - started
heavy = [x for x in sys.argv[2:] if x in sys.modules]
sys.stderr.write("\\n" + json.dumps([seconds, heavy]))
"""


def check_light_import(plugin: Any, seconds: float = SLOW_SECONDS) -> None:
    """Raise `ContractError` if a plugin's module imports torch or numpy, prints, fails to import, or is slow.

    It is imported in a process of its own, where it must be found as it is here. One that takes longer than
    `seconds` is imported once more; by default, hosts note what takes longer. On Linux, the time that it
    waits for a processor while other programs run does not count.
    """
    name = plugin if isinstance(plugin, str) else module_of(plugin)
    taken = []
    for _ in range(_TRIES):
        taken.append(_import_seconds(name))
        if taken[-1] <= seconds:
            return
    raise ContractError(
        f"{name} takes {min(taken):.1f} s to import, and at most {seconds:g} s are allowed: do the work"
        " inside the hooks, after they declined"
    )


def _import_seconds(name: str) -> float:
    done = run_python(_IMPORT, name, *HEAVY)
    if done.returncode:
        raise ContractError(f"{name} does not import in a process of its own: {last_line(done)}")
    if done.stdout.strip():
        raise ContractError(f"{name} prints {done.stdout.strip()[:60]!r} when it is imported")
    seconds, heavy = json.loads(done.stderr.rpartition("\n")[2])
    if heavy:
        raise ContractError(
            f"{name} imports {', '.join(heavy)}: import it inside the hooks, after they declined"
        )
    return float(seconds)


def module_of(plugin: Any) -> str:
    """Return the name of the module that a plugin is, or that its class is in."""
    is_module = hasattr(plugin, "__spec__")
    return str(plugin.__name__ if is_module else type(plugin).__module__)
