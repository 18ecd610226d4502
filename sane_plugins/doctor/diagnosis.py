"""The whole examination: what an installation has, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sane_plugins.display import ShortRepr
from sane_plugins.doctor.extras import Extra, list_extras
from sane_plugins.doctor.installation import (
    examine_torchvision,
    list_devices,
    list_versions,
)
from sane_plugins.doctor.plugin_report import PluginReplies, PluginReport, report_plugins
from sane_plugins.doctor.self_test import SECONDS, Trial, list_untried, run_self_test
from sane_plugins.host import Host
from sane_plugins.plugins import DisabledPlugin


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Diagnosis(ShortRepr):
    """What an examination found, in sentences: `complaints` are to be repaired, `notes` are limits."""

    versions: Mapping[str, str]
    extras: tuple[Extra, ...]
    devices: Mapping[str, str]
    plugins: tuple[PluginReport, ...]
    disabled: tuple[DisabledPlugin, ...]
    trials: tuple[Trial, ...]
    complaints: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def skipped(self) -> int:
        """Return how many checks were not tried, because the time was over."""
        return sum(x.is_skipped for x in self.trials)

    @property
    def is_well(self) -> bool:
        """Return whether there is nothing to repair, and everything was tried."""
        return not self.complaints and not self.skipped


def examine(host: Host, source: Any = None, seconds: float = SECONDS) -> Diagnosis:
    """Examine the installation: a self-test, and what each plugin would answer.

    `source` is given to every plugin that reads; without one, plugins are asked for their offers alone.
    What others' plugins offer is tried for about `seconds`.
    """
    replies = PluginReplies(host, source)
    trials = run_self_test(host, seconds)
    plugins = report_plugins(host, replies)
    complaints, notes = examine_torchvision()
    complaints += [
        _with_way_out(host, x.name, f"plugin {x.name}: {problem}")
        for x in plugins
        for problem in x.problems
    ]
    complaints += [_complaint(host, x) for x in trials if x.error is not None]
    if not any(x.is_ours and x.is_loaded for x in plugins):
        complaints.append(
            "none of our own plugins is loaded: install sane-plugins again, or see what is disabled"
        )
    notes += [f"plugin {x.name}: {text}" for x in plugins for text in x.notes]
    notes += _untried(trials, list_untried(host), seconds)
    return Diagnosis(
        versions=list_versions(),
        extras=tuple(list_extras()),
        devices=list_devices(),
        plugins=tuple(plugins),
        disabled=tuple(host.disabled_plugins()),
        trials=tuple(trials),
        complaints=tuple(dict.fromkeys(complaints)),
        notes=tuple(notes),
    )


def _complaint(host: Host, trial: Trial) -> str:
    if not trial.plugin:
        return f"self-test, {trial.what}: {trial.error}"
    return _with_way_out(host, trial.plugin, f"plugin {trial.plugin}, {trial.what}: {trial.error}")


def _with_way_out(host: Host, plugin: str, text: str) -> str:
    """Return a complaint with the line that disables the plugin, where there is one."""
    line = host.way_without(plugin)
    return f"{text.rstrip('.')}; or go without it: {line}" if line else text


def _untried(
    trials: Sequence[Trial], never: Sequence[tuple[str, str]], seconds: float
) -> Iterator[str]:
    """Yield what was not tried, and why."""
    skipped = [f"{x.what} of {x.plugin}" for x in trials if x.is_skipped]
    if skipped:
        are = "checks were" if len(skipped) > 1 else "check was"
        yield (
            f"{len(skipped)} {are} not tried, as the {seconds:g} s for plugins were over"
            f" (--seconds gives more): {', '.join(skipped)}"
        )
    if never:
        listed = ", ".join(f"{what} of {plugin}" for what, plugin in never)
        yield f"these work on a task and cannot be tried without one: {listed}"
