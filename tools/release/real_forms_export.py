"""Stages of real_forms.py that bring back what was trained, and write its page of results."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from real_forms_shared import ROOT, in_half, say

from sane_plugins.autoencoder import read_metadata
from sane_plugins.pretraining import log_path, read_log
from sane_plugins.zoo import Zoo, is_zoo
from sane_plugins.zoo.index import ZooIndex
from sane_plugins.zoo.shards import ShardWriter

PART_BYTES = 11 * 2**20
PARTS = 4  # files of a part


def export(arguments: argparse.Namespace) -> None:
    """Write what comes back: four files of the zoo in half precision, and with the first part SANE and notes.

    The parts in one folder are the zoo.
    """
    work, out = arguments.work, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if is_zoo(work / "real-forms") and not is_zoo(work / "half"):
        real = Zoo.open(work / "real-forms")
        writer = ShardWriter(work / "half", ZooIndex("real-forms", (), {}), PART_BYTES)
        for entry in real.entries:
            writer.add(replace(entry, file=""), in_half(real.state_dict(entry)))
        writer.commit()
    shards = sorted((work / "half").glob("*.safetensors"))
    for path in shards[PARTS * arguments.part :][:PARTS]:
        shutil.copy(path, out)
    if not arguments.part:
        if (work / "sane-half.safetensors").exists():
            shutil.copy(work / "sane-half.safetensors", out / "sane.safetensors")
        with tarfile.open(out / "notes.tar.gz", "w:gz") as notes:
            for path in _notes(work):
                notes.add(path, f"{path.parent.name}-{path.name}")
    for path in sorted(out.iterdir()):
        say(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    say(f"part {arguments.part} of {math.ceil(len(shards) / PARTS)}")


def record(arguments: argparse.Namespace) -> None:
    """Write the card of the zoo and how the SANE was trained to benchmarks/results/.

    A SANE that went on from another is told after it.
    """
    work, path = arguments.work, ROOT / "benchmarks" / "results" / "real_forms.json"
    lines, told = (
        read_log(log_path(work / "sane.safetensors")),
        read_metadata(work / "sane.safetensors"),
    )
    losses = {
        name: sum(line[name] for line in lines[-20:]) / len(lines[-20:])
        for name in ("values", "side", "hidden", "contrast")
    }
    found = {
        "hardware": arguments.hardware,
        "steps": lines[-1]["step"],
        "seconds": lines[-1]["seconds"],
        "losses": losses,
        "recipe": told["recipe"],
        "zoos": told["zoos"],
    }
    before = json.loads(path.read_text())["stages"] if "start" in told else []
    stages = [*before[:1], found]
    path.write_text(json.dumps({"stages": stages}, indent=1) + "\n")
    page = [
        *(_stage_text(stage) for stage in stages),
        f"Of the variance of hidden tokens, {losses['hidden']:.3f} is left when the others are shown.",
        "",
        (work / "real-forms" / "card.md").read_text().partition("\n")[2].strip(),
    ]
    path.with_suffix(".md").write_text("\n".join(page) + "\n")


def _stage_text(stage: Mapping[str, Any]) -> str:
    recipe = stage["recipe"]
    windows = recipe["batch"] * recipe["accumulate"]
    options = ", ".join(f"{name} {recipe[name]}" for name in ("lr", "noise", "side", "hidden"))
    shown = ", ".join(f"{name} {loss:.4f}" for name, loss in stage["losses"].items())
    return (
        f"The SANE, on {stage['hardware']}: {stage['steps']} steps of {windows} windows in {stage['seconds']:.0f} s"
        f" ({options}); losses at the end: {shown}."
    )


def _notes(work: Path) -> Iterator[Path]:
    named = (
        "real-forms/card.md",
        "measured.json",
        "sane.safetensors.jsonl",
        "half/index.jsonl",
    )
    yield from (work / name for name in named if (work / name).exists())
