"""One plugin loaded in a process of its own, as a command loads it that needs nothing of it."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from importlib.metadata import EntryPoint
from pathlib import Path
from tempfile import TemporaryDirectory

import pluggy

import sane_plugins
from sane_plugins import hooks
from sane_plugins.host import PROJECT, Host
from sane_plugins.plugins import distribution_name
from sane_plugins.testing import HEAVY, ContractError, last_line, run_python

_LOAD = "import sys; from sane_plugins.doctor.load_alone import load; load(*sys.argv[1:])"
_BETWEEN = tuple(str(Path(str(x.__file__)).parent) for x in (sane_plugins, pluggy, importlib))


def require_light_load(name: str, distribution: str) -> None:
    """Raise `ContractError` if loading a plugin imports torch or numpy, prints, or fails when it is alone.

    Its module, its `sane_plugin(host)` and its `sane_commands` are what every command runs.
    """
    with TemporaryDirectory(prefix="sane-doctor-") as folder:
        answer = Path(folder) / "answer.json"
        # The working directory is no place for modules.
        alone = {"PYTHONSAFEPATH": "1", "SANE_PLUGINS_STRICT": ""}
        done = run_python(_LOAD, name, distribution, str(answer), **alone)
        told = json.loads(answer.read_text()) if answer.is_file() else {}
    if not told:
        last = last_line(done)[:200]
        raise ContractError(f"it ends the process that loads it alone ({last}): it must not")
    if told["problem"]:
        raise ContractError(f"alone in a process it fails: {told['problem']}")
    faults = []
    if text := done.stdout.strip():
        faults.append(
            f"it prints {text.splitlines()[0][:60]!r} when it is loaded, to standard output, which holds"
            " a command's result: write it to stderr, or log it"
        )
    if told["heavy"]:
        heavy = " and ".join(f"{module} ({place})" for place, module in told["heavy"].items())
        faults.append(
            f"loading it imports {heavy}, which every command waits for: import late, inside the hooks,"
            " after they declined"
        )
    if faults:
        raise ContractError("; and ".join(faults))


class _HeavyImports:
    """A finder that finds nothing, and keeps the line of a plugin that imports what is heavy."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def find_spec(self, name: str, *_: object) -> None:
        if name in HEAVY:
            line = next(filter(_is_others, traceback.extract_stack()), None)
            place = f"{Path(line.filename).name}, line {line.lineno}" if line else "by ours"
            self.lines.setdefault(place, name)  # the first, which may import the others


def _is_others(frame: traceback.FrameSummary) -> bool:
    return not frame.filename.startswith(("<", *_BETWEEN))


def load(name: str, distribution: str, answer: str) -> None:
    """Load a plugin, and write what was imported and what failed into the file `answer`."""

    def is_it(point: EntryPoint) -> bool:
        return (point.name, distribution_name(point)) == (name, distribution)

    watch = _HeavyImports()
    sys.meta_path.insert(0, watch)
    pm = pluggy.PluginManager(PROJECT)
    pm.add_hookspecs(hooks)
    host = Host(pm)
    host.load_installed(is_it)
    host.commands()
    problem = next((x.error for x in host.problems if x.plugin == name), "")
    Path(answer).write_text(json.dumps({"heavy": watch.lines, "problem": problem}))
