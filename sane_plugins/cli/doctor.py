"""`sane-plugins doctor`: what is wrong with this installation and its plugins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_line,
    print_table,
    progress_bars,
)
from sane_plugins.cli.options.numbers import FiniteRange

if TYPE_CHECKING:
    from sane_plugins.doctor import Diagnosis, PluginReport, Trial

_TO_REPAIR, _NOT_ALL_TRIED = 1, 3


@click.command()
@click.argument("source", required=False)
@click.option(
    "--seconds",
    default=30.0,
    show_default=True,
    type=FiniteRange(0, 3_600),
    help="How long to try what plugins of others offer; what has begun is ended.",
)
@command_options
def doctor(source: str | None, seconds: float, as_json: bool) -> None:
    """Say what is installed and what is wrong with it: extras, plugins, devices, a self-test of seconds.

    With a SOURCE, say also what each plugin answers for it. The command exits with 1 where something is to be
    repaired, which a missing extra is not, and else with 3 where the time was over before all was tried.

    Example: sane-plugins doctor model.onnx
    """
    from sane_plugins.doctor import examine

    note(f"Examining: imports, a self-test, and plugins of others for up to {seconds:g} seconds.")
    host = open_host()
    with progress_bars(host):
        found = examine(host, source, seconds)
    if as_json:
        print_json(_to_json(found))
    else:
        _print(found, source)
    if not found.is_well:
        raise click.exceptions.Exit(_TO_REPAIR if found.complaints else _NOT_ALL_TRIED)


def _print(found: Diagnosis, source: str | None) -> None:
    versions = [(name, text or "not installed") for name, text in found.versions.items()]
    print_table("versions", ("what", "version"), versions)
    print_table("devices", ("device", "what it is"), list(found.devices.items()))
    extras = [
        (x.name, "installed" if not x.lacking else f"lacks {', '.join(x.lacking)}", _way_out(x))
        for x in found.extras
    ]
    print_table("extras", ("extra", "state", "to install"), extras)
    print_table(
        "plugins", ("name", "from", "import, s", "offers"), [_plugin_row(x) for x in found.plugins]
    )
    if found.disabled:
        rows = [(x.name, f"{x.distribution} {x.version}", x.to_enable) for x in found.disabled]
        print_table("disabled plugins", ("name", "from", "to enable it"), rows)
    if source is not None:
        answers = [(x.name, *pair) for x in found.plugins for pair in x.answers.items()]
        print_table(f"answers for {source}", ("plugin", "hook", "answer"), answers)
    print_table("self-test", ("what", "plugin", "result"), _trial_rows(found.trials))
    for text in found.notes:
        print_line(f"To know: {text}.")
    for complaint in found.complaints:
        print_line(f"To repair: {complaint}")
    if found.is_well:
        print_line("All is well.")
    elif not found.complaints:
        were = "checks were" if found.skipped > 1 else "check was"
        print_line(f"{found.skipped} {were} not tried; what was tried is well.")


def _way_out(extra: Any) -> str:
    return extra.install_line if extra.lacking else ""


def _plugin_row(plugin: PluginReport) -> tuple[str, ...]:
    offers = [f"{kind}: {', '.join(names) or 'none'}" for kind, names in plugin.offers.items()]
    seconds = "" if plugin.seconds is None else f"{plugin.seconds:.3f}"
    origin = f"{plugin.distribution} {plugin.version}".strip()
    if not plugin.is_loaded:
        origin = f"{origin} (not loaded)".strip()
    return plugin.name, origin, seconds, "; ".join(offers) or ", ".join(plugin.hooks)


def _trial_rows(trials: Sequence[Trial]) -> list[tuple[str, str, str]]:
    def result(trial: Trial) -> str:
        if trial.is_skipped:
            return "not tried: the time was over"
        return trial.error or f"well, {trial.seconds:.2f} s"

    return [(x.what, x.plugin, result(x)) for x in trials]


def _to_json(found: Diagnosis) -> dict[str, Any]:
    return {
        "well": found.is_well,
        "complaints": found.complaints,
        "notes": found.notes,
        "versions": found.versions,
        "devices": found.devices,
        "extras": [
            {"name": x.name, "lacking": x.lacking, "install": x.install_line} for x in found.extras
        ],
        "plugins": [asdict(x) for x in found.plugins],
        "disabled": [x.name for x in found.disabled],
        "to_enable": {x.name: x.to_enable for x in found.disabled},
        "self_test": [asdict(x) for x in found.trials],
    }
