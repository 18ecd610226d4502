"""The whole examination: what an installation has, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sane_plugins.display import ShortRepr
from sane_plugins.doctor.extras import Extra, list_extras
from sane_plugins.doctor.installation import (
    examine_torchvision,
    list_devices,
    list_versions,
)
from sane_plugins.doctor.plugin_report import PluginReport, report_plugins
from sane_plugins.doctor.self_test import SECONDS, Trial, run_self_test
from sane_plugins.host import Host


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Diagnosis(ShortRepr):
    """What an examination found, in sentences: `complaints` are to be repaired, `notes` are limits."""

    versions: Mapping[str, str]
    extras: tuple[Extra, ...]
    devices: Mapping[str, str]
    plugins: tuple[PluginReport, ...]
    disabled: tuple[str, ...]
    trials: tuple[Trial, ...]
    complaints: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_well(self) -> bool:
        """Return whether there is nothing to repair."""
        return not self.complaints


def examine(host: Host, source: Any = None, seconds: float = SECONDS) -> Diagnosis:
    """Examine the installation: a self-test of about `seconds`, and what each plugin would answer.

    `source` is given to every plugin that reads; without one, plugins are asked for their offers alone.
    """
    trials = run_self_test(host, seconds)
    plugins = report_plugins(host, source)
    complaints, notes = examine_torchvision()
    complaints += [f"plugin {x.name}: {problem}" for x in plugins for problem in x.problems]
    complaints += [_complaint(x) for x in trials if x.error is not None]
    if not any(x.is_ours for x in plugins):
        complaints.append(
            "none of our own plugins is loaded: install sane-plugins again, or see what is disabled"
        )
    return Diagnosis(
        versions=list_versions(),
        extras=tuple(list_extras()),
        devices=list_devices(),
        plugins=tuple(plugins),
        disabled=tuple(host.disabled),
        trials=tuple(trials),
        complaints=tuple(dict.fromkeys(complaints)),
        notes=tuple(notes),
    )


def _complaint(trial: Trial) -> str:
    place = f"plugin {trial.plugin}, {trial.what}" if trial.plugin else f"self-test, {trial.what}"
    return f"{place}: {trial.error}"
