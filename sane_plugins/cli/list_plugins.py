"""`sane-plugins list`: installed plugins, and what they offer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from difflib import get_close_matches

import click

from sane_plugins import hooks
from sane_plugins.cli.console import command_options, open_host, print_json, print_table
from sane_plugins.errors import UsageError
from sane_plugins.host import Host


@click.command("list")
@click.option("--hook", help="Only plugins that implement this hook, and what they offer by it.")
@command_options
def list_plugins(hook: str | None, as_json: bool) -> None:
    """List installed plugins, what they offer, and what is wrong with them."""
    host = open_host()
    _require_hook(hook)
    plugins = [x for x in host.plugins() if hook is None or hook in x.hooks]
    offers = {
        kind: sorted(offered(host))
        for kind, (offering, offered) in _OFFERS.items()
        if hook in (None, offering)
    }
    disabled = host.disabled_plugins()
    if as_json:
        problems = [{"plugin": x.plugin, "error": x.error, "place": x.place} for x in host.problems]
        notes = [asdict(x) for x in host.notes]
        described = [asdict(x) for x in plugins]
        off = [asdict(x) for x in disabled]
        told = {"problems": problems, "notes": notes, "disabled": off}
        print_json({"plugins": described, **offers, **told})
        return
    rows = [(x.name, x.distribution, x.version, ", ".join(x.hooks)) for x in plugins]
    print_table("plugins", ("name", "distribution", "version", "hooks"), rows)
    if offers:
        print_table("offers", ("kind", "names"), [(k, ", ".join(v)) for k, v in offers.items()])
    if "prompts" in offers and (prompts := host.prompts()):
        print_table(
            "prompts (sane-init --prompts NAME)",
            ("name", "trained on", "classes", "licence"),
            [
                (name, x.info.task, f"{len(x.info.classes) or 'not known'}", x.info.licence)
                for name, x in prompts.items()
            ],
        )
    if disabled:
        off_rows = [(x.name, x.distribution, x.version, x.to_enable) for x in disabled]
        print_table("disabled", ("name", "distribution", "version", "to enable it"), off_rows)
    if host.problems:
        problem_rows = [
            (x.plugin, x.place or "all of it", x.error, host.way_without(x.plugin))
            for x in host.problems
        ]
        print_table("problems", ("plugin", "left out", "reason", "to go without it"), problem_rows)
    if host.notes:
        print_table("notes", ("plugin", "note"), [(x.plugin, x.text) for x in host.notes])


def _require_hook(hook: str | None) -> None:
    known = sorted(name for name in vars(hooks) if name.startswith("sane_"))
    if hook is None or hook in known:
        return
    close = get_close_matches(hook, known, n=1)
    raise UsageError(
        f"--hook {hook}",
        "there is no such hook",
        f"one of {', '.join(known)} is needed",
        f"did you mean {close[0]}" if close else "check the name",
    )


def _own_commands() -> Collection[str]:
    """Return the names of our commands, which plugins cannot take."""
    from sane_plugins.cli.main import main

    return main.commands.keys()


_OFFERS: Mapping[str, tuple[str, Callable[[Host], Iterable[str]]]] = {
    "encoders": ("sane_encoders", Host.encoders),
    "samplers": ("sane_samplers", Host.samplers),
    "transfers": ("sane_transfers", Host.transfers),
    "property heads": ("sane_property_heads", Host.property_heads),
    "engines": ("sane_engines", Host.engines),
    "prompts": ("sane_prompts", Host.prompts),
    "published networks": ("sane_published_networks", Host.published_networks),
    "commands": (
        "sane_commands",
        lambda host: (str(command.name) for command in host.commands(_own_commands())),
    ),
}
