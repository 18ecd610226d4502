"""The card of a zoo that a recipe made: its networks, how good they are, and how they were trained."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from sane_plugins.zoo import Entry, Zoo
from sane_plugins.zoo_training.recipe import Recipe

CARD_NAME = "card.md"


def zoo_card(zoo: Zoo, recipe: Recipe) -> str:
    """Return the card as Markdown: a row per form and task, then a row per network."""
    last = _last_checkpoints(zoo)
    planned = {network.name: network.training.epochs for network in recipe.networks}
    cut = sum(float(x.properties["epoch"]) < planned[name] for name, x in last.items())
    missing = len(planned) - len(last)
    lines = [
        f"# {zoo.name}",
        "",
        f"{len(last)} networks with {len(zoo)} checkpoints, trained with torch {torch.__version__}. "
        f"Of {len(planned)} that the recipe plans, {missing} were not begun and {cut} not trained to"
        " their end.",
        "Networks that did not learn are kept. Accuracies are on images that training did not see.",
        "",
        "| task | images from | training images at most |",
        "|---|---|---|",
        *(_task_row(recipe, task) for task in sorted(recipe.tasks)),
        "",
        "| form | task | networks | values | accuracy: least, median, greatest | not finite |",
        "|---|---|---|---|---|---|",
        *_form_rows(zoo, last),
        "",
        "| network | arguments | training | epochs | test accuracy | training accuracy |",
        "|---|---|---|---|---|---|",
        *(_network_row(recipe, x) for _, x in sorted(last.items())),
    ]
    return "\n".join(lines) + "\n"


def _last_checkpoints(zoo: Zoo) -> dict[str, Entry]:
    """Return the last checkpoint of each network."""
    last: dict[str, Entry] = {}
    for entry in zoo.entries:
        known = last.get(entry.network)
        if known is None or float(entry.properties["epoch"]) > float(known.properties["epoch"]):
            last[entry.network] = entry
    return last


def _task_row(recipe: Recipe, task: str) -> str:
    counts = {x.training.images for x in recipe.networks if x.task == task}
    most = "all" if 0 in counts else f"{max(counts):,}" if counts else "none"
    return f"| {task} | `{recipe.tasks[task].source}` | {most} |"


def _form_rows(zoo: Zoo, last: dict[str, Entry]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in last.values():
        key = (str(entry.properties["form"]), str(entry.properties["dataset"]))
        groups.setdefault(key, []).append(entry)
    for (form, task), members in sorted(groups.items()):
        accuracy = [float(x.properties["test_accuracy"]) for x in members]
        sizes = [zoo.forms[x.form].parameters for x in members]
        wrong = sum(not x.properties["finite"] for x in members)
        yield (
            f"| {form} | {task} | {len(members)} | {min(sizes):,} to {max(sizes):,} | {min(accuracy):.3f},"
            f" {median(accuracy):.3f}, {max(accuracy):.3f} | {wrong} |"
        )


def _network_row(recipe: Recipe, entry: Entry) -> str:
    network = next(x for x in recipe.networks if x.name == entry.network)
    arguments = ", ".join(f"{k}={v}" for k, v in network.factory.items() if k != "name")
    told: dict[str, Any] = vars(network.training)
    training = ", ".join(f"{k}={v}" for k, v in told.items() if k != "epochs")
    measured = entry.properties
    return (
        f"| {entry.network} | {arguments or 'none'} | {training} | {measured['epoch']} of {told['epochs']}"
        f" | {measured['test_accuracy']:.3f} | {measured['train_accuracy']:.3f} |"
    )
