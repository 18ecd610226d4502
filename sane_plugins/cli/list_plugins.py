"""`sane-plugins list`: installed plugins, and what they offer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

import click

from sane_plugins.cli.console import command_options, open_host, print_json, print_table


@click.command("list")
@click.option("--hook", help="Only plugins that implement this hook.")
@command_options
def list_plugins(hook: str | None, as_json: bool) -> None:
    """List installed plugins, what they offer, and what is wrong with them."""
    host = open_host()
    plugins = [x for x in host.plugins() if hook is None or hook in x.hooks]
    offers = {
        "encoders": sorted(host.encoders()),
        "samplers": sorted(host.samplers()),
        "transfers": sorted(host.transfers()),
        "property heads": sorted(host.property_heads()),
        "engines": sorted(host.engines()),
        "prompts": sorted(host.prompts()),
        "published networks": sorted(host.published_networks()),
        "commands": sorted(str(command.name) for command in host.commands(_own_commands())),
    }
    if as_json:
        problems = [{"plugin": x.plugin, "error": x.error, "place": x.place} for x in host.problems]
        notes = [asdict(x) for x in host.notes]
        described = [asdict(x) for x in plugins]
        print_json({"plugins": described, **offers, "problems": problems, "notes": notes})
        return
    rows = [(x.name, x.distribution, x.version, ", ".join(x.hooks)) for x in plugins]
    print_table("plugins", ("name", "distribution", "version", "hooks"), rows)
    print_table("offers", ("kind", "names"), [(k, ", ".join(v)) for k, v in offers.items()])
    if prompts := host.prompts():
        print_table(
            "prompts (sane-init --prompts NAME)",
            ("name", "trained on", "classes", "licence"),
            [
                (name, x.info.task, f"{len(x.info.classes) or 'not known'}", x.info.licence)
                for name, x in prompts.items()
            ],
        )
    if host.problems:
        problem_rows = [(x.plugin, x.place or "all of it", x.error) for x in host.problems]
        print_table("problems", ("plugin", "left out", "reason"), problem_rows)
    if host.notes:
        print_table("notes", ("plugin", "note"), [(x.plugin, x.text) for x in host.notes])


def _own_commands() -> Collection[str]:
    """Return the names of our commands, which plugins cannot take."""
    from sane_plugins.cli.main import main

    return main.commands.keys()
