"""`sane-plugins zoo train --recipe`: train networks of many forms that a file lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click
from click.core import ParameterSource

from sane_plugins import zoo, zoo_training
from sane_plugins.architectures import Trust
from sane_plugins.cli.console import note, open_host, print_json, print_table, progress_bars
from sane_plugins.errors import UsageError

_OF_RECIPES = {  # options that need --recipe
    "only": "--only",
    "data": "--data",
    "minutes": "--minutes",
    "factories": "--factory",
}
_IN_RECIPES = {  # options that a recipe says for itself
    "task": "--task",
    "architecture": "--architecture",
    "settings": "--set",
    "networks": "--networks",
    "keep": "--keep",
    "size": "--size",
    "batch": "--batch",
    "act": "--act",
    "init": "--init",
    "opt": "--opt",
    "seed": "--seed",
    "group": "--group",
}


def require_options_that_fit(context: click.Context, has_recipe: bool) -> None:
    """Raise `UsageError` for options that only go with a recipe, or that a recipe says itself."""
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if has_recipe and (wrong := [_IN_RECIPES[x] for x in _IN_RECIPES if x in given]):
        raise UsageError(
            wrong[0],
            "the recipe says that for each network",
            "one of both is needed",
            "leave it out, or change the recipe",
        )
    if not has_recipe and (wrong := [_OF_RECIPES[x] for x in _OF_RECIPES if x in given]):
        raise UsageError(
            wrong[0], "there is no recipe", "it is about a recipe's networks", "add --recipe FILE"
        )


def read_recipe(context: click.Context, path: Path, only: Sequence[str]) -> zoo_training.Recipe:
    """Return the recipe, cut to what the options say."""

    def given(name: str) -> int | None:
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        return context.params[name] if is_given else None

    recipe = zoo_training.Recipe.read(path)
    recipe = recipe.only(only) if only else recipe
    return recipe.at_most(epochs=given("epochs"), images=given("count"))


def train_chosen(
    recipe: zoo_training.Recipe,
    options: zoo_training.RecipeOptions,
    output: Path,
    *,
    resume: bool,
    force: bool,
    trust: Trust,
    as_json: bool,
) -> None:
    """Train a recipe and say what came of it."""
    host = open_host()
    with progress_bars(host):
        trained = zoo_training.train_recipe(
            recipe,
            options,
            output,
            resume=resume,
            force=force,
            report=host.report,
            trust=trust,
        )
    _print(trained, recipe, output, as_json)


def _print(trained: zoo.Zoo, recipe: zoo_training.Recipe, output: Path, as_json: bool) -> None:
    """Print counts and accuracies of each form, and what the deadline left undone."""
    last = {entry.network: entry for entry in trained.entries}  # checkpoints come in order
    planned = {network.name: network.training.epochs for network in recipe.networks}
    done = sum(entry.properties["epoch"] == planned[name] for name, entry in last.items())
    forms: dict[str, list[float]] = {}
    for entry in last.values():
        name = f"{entry.properties['form']}, {entry.properties['dataset']}"
        forms.setdefault(name, []).append(float(entry.properties["test_accuracy"]))
    if as_json:
        counts = {"networks": len(last), "checkpoints": len(trained), "done": done}
        accuracy = {name: sorted(values) for name, values in sorted(forms.items())}
        told = {"output": str(output), **counts, "planned": len(planned)}
        print_json({**told, "accuracy": accuracy})
        return
    rows = [
        (name, len(values), f"{min(values):.3f}", f"{median(values):.3f}", f"{max(values):.3f}")
        for name, values in sorted(forms.items())
    ]
    header = ("form, task", "networks", "least accuracy", "median", "greatest")
    print_table(f"{trained.name}: {len(last)} networks, {len(trained)} checkpoints", header, rows)
    if done < len(planned):
        note(f"Note: {len(planned) - done} networks are not at their end: --resume goes on.")
    note(f"Its card is {output / 'card.md'}; learn from it with 'sane-plugins pretrain {output}'.")
