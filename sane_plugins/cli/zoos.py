"""Commands that keep zoos and learn from them."""

from __future__ import annotations

from collections import Counter
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
)  # fmt: skip

if TYPE_CHECKING:
    from sane_plugins.zoo.store import Zoo

_FOLDER = click.Path(path_type=Path)


@click.group()
def zoo() -> None:
    """Import zoos of trained networks, and show what they hold."""


@zoo.command("import")
@click.argument("index", type=_FOLDER)
@click.option("-o", "--output", type=_FOLDER, required=True, help="The new zoo's folder.")
@click.option("--force", is_flag=True, help="Replace a zoo that exists there.")
@command_options
def import_zoo(index: Path, output: Path, force: bool, as_json: bool) -> None:
    """Import a published zoo: INDEX is its .json file, its .safetensors lies beside it."""
    from sane_plugins.zoo.store import import_published, write

    published = import_published(index)
    items = ((entry, published.state_dict(entry)) for entry in published.entries)
    _show(write(output, published.name, items, force), as_json)


@zoo.command("show")
@click.argument("folder", type=_FOLDER)
@command_options
def show_zoo(folder: Path, as_json: bool) -> None:
    """Show how many networks a zoo holds, and the range of every property."""
    from sane_plugins.zoo.store import Zoo

    _show(Zoo.open(folder), as_json)


@click.command()
@click.argument("zoos", metavar="ZOO...", type=_FOLDER, nargs=-1, required=True)
@click.option("-o", "--output", type=_FOLDER, required=True, help="Where to write the SANE.")
@click.option("--steps", default=4000, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=32, show_default=True, type=click.IntRange(2))
@click.option("--lr", default=1e-3, show_default=True, help="Peak learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@command_options
def pretrain(
    zoos: tuple[Path, ...], output: Path, steps: int, batch: int, lr: float, seed: int, precision: str,
    device: str,
    resume: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train a SANE on zoos."""
    from sane_plugins.latent.model import SANEConfig
    from sane_plugins.progress import current
    from sane_plugins.weights.writing import require_free
    from sane_plugins.zoo.pretrain import PretrainOptions
    from sane_plugins.zoo.pretrain import pretrain as train
    from sane_plugins.zoo.store import Zoo

    require_free(output, force)
    _require_device(device)
    opened = [Zoo.open(folder) for folder in zoos]
    options = PretrainOptions(
        steps=steps, batch=batch, lr=lr, seed=seed, device=device, bf16=precision == "bf16"
    )
    with progress_bars(open_host()):
        train(opened, SANEConfig(), options, output, resume=resume, report=current())
    if as_json:
        print_json({"output": str(output), "steps": steps})
    else:
        note(f"Written to {output}; use it with 'sane-init --sane' or 'sane-plugins embed --sane'.")


def _require_device(device: str) -> None:
    """Raise `UsageError` for a device that torch cannot use here."""
    import torch

    from sane_plugins.errors import UsageError

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).partition("\n")[0]
        raise UsageError(
            f"--device {device}", f"it cannot be used ({first})", "a device of this torch is needed",
            "leave the option out to train on the CPU",
        ) from error  # fmt: skip


def _show(found: Zoo, as_json: bool) -> None:
    ranges = _ranges(found)
    if as_json:
        told = {"networks": len(found.networks), "checkpoints": len(found), "properties": ranges}
        print_json({"name": found.name, **told})
        return
    title = f"{found.name}: {len(found.networks)} networks, {len(found)} checkpoints"
    print_table(title, ("property", "values"), list(ranges.items()))


def _ranges(found: Zoo) -> dict[str, Any]:
    """Return the range of every numeric property, and the counts of every other."""
    told = {}
    for name in sorted({key for entry in found.entries for key in entry.properties}):
        values = [e.properties[name] for e in found.entries if name in e.properties]
        if all(isinstance(v, float | int) and not isinstance(v, bool) for v in values):
            told[name] = f"{min(map(float, values)):.4g} to {max(map(float, values)):.4g}"
        else:
            told[name] = ", ".join(f"{k} ({n})" for k, n in Counter(map(str, values)).most_common())
    return told
