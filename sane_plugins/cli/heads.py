"""Commands that fit property heads to zoos, and show what a file of heads holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sane_plugins.cli.console import (
    command_options,
    note,
    open_host,
    print_json,
    print_table,
    progress_bars,
)

if TYPE_CHECKING:
    from sane_plugins.properties import AnyHead

_FILE = click.Path(path_type=Path)
_PROPERTIES = ("test_accuracy", "gap", "epoch")


@click.group()
def heads() -> None:
    """Fit heads that predict properties of networks, and show what they are."""


@heads.command("fit")
@click.argument("zoos", metavar="ZOO...", type=_FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=_FILE, required=True, help="Where to write the heads.")
@click.option(
    "--property",
    "properties",
    multiple=True,
    default=_PROPERTIES,
    show_default=True,
    help="A column of the zoos, of numbers or of names; repeat for more.",
)
@click.option(
    "--features",
    type=click.Choice(["auto", "sane", "statistics", "both"]),
    default="auto",
    show_default=True,
    help="What is read; auto chooses by cross-validation.",
)
@click.option("--sane", type=_FILE, help="A SANE of your own, from 'pretrain'.")
@click.option("--seed", default=0, show_default=True, help="Of the folds of cross-validation.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@command_options
def fit(
    zoos: tuple[Path, ...],
    output: Path,
    properties: tuple[str, ...],
    features: str,
    sane: Path | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Fit a head per property to zoos whose networks have it."""
    from sane_plugins.atomic_files import require_free
    from sane_plugins.features import EncodeOptions, load_model
    from sane_plugins.progress import current
    from sane_plugins.properties import FitOptions, fit_heads, save_heads
    from sane_plugins.zoo import Zoo

    require_free(output, force)
    options = FitOptions(properties=properties, features=features, seed=seed)
    with progress_bars(open_host()):
        opened = [Zoo.open(folder) for folder in zoos]
        done = fit_heads(opened, load_model(EncodeOptions(model=sane)), options, current())
    save_heads(done.heads, output)
    for text in done.notes:
        note(f"Note: {text}.")
    _tell(list(done.heads.values()), as_json)
    note(f"Written to {output}; use it with 'sane-plugins predict --heads'.")


@heads.command("show")
@click.argument("file", type=_FILE)
@command_options
def show(file: Path, as_json: bool) -> None:
    """Show what a file of heads predicts, what each reads, and how well each did."""
    from sane_plugins.properties import load_heads

    _tell(list(load_heads(file).values()), as_json)


def _tell(found: Sequence[AnyHead], as_json: bool) -> None:
    told = [_told(head) for head in found]
    if as_json:
        print_json(told)
        return
    columns = ("property", "what", "features", "channel order", "score", "cross-validated")
    rows = [
        (
            x["property"],
            ", ".join(x.get("classes", ["number"])),
            x["features"],
            ", ".join(f"{k}: {v}" for k, v in x["invariance"].items()),
            x["score"],
            ", ".join(f"{k} {v:.3f}" for k, v in _best(x["scores"]).items()),
        )
        for x in told
    ]
    print_table("property heads", columns, rows)


def _told(head: AnyHead) -> dict[str, Any]:
    told: dict[str, Any] = {
        "property": head.property,
        "features": head.features,
        "invariance": head.invariance,
        "score": head.score,
        "scores": dict(head.scores),
        "coverage": head.coverage,
        "sane": head.sane,
    }
    return told | ({"classes": list(head.classes)} if hasattr(head, "classes") else {})


def _best(scores: dict[str, float]) -> dict[str, float]:
    """Return the best score of each set of features."""
    found: dict[str, float] = {}
    for name, score in scores.items():
        kind = name.partition("/")[0]
        found[kind] = max(score, found.get(kind, score))
    return found
