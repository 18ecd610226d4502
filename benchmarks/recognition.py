"""Which architectures of torchvision and timm are recognised by their names and shapes, and what is by mistake.

    python benchmarks/recognition.py --work DIR             # full: writes results/recognition.json and .md
    python benchmarks/recognition.py --work DIR --every 50  # a quick look, printed only

Every name of both libraries is built on the meta device for 5 classes, and for one input channel; the first has
`module._orig_mod.` put in front too, and is tried under names of modules that nobody uses. It is recognised where its
name is among the candidates. In three copies of each one thing is wrong: a name is changed, a tensor left out or added, a
length changed, or two shapes are exchanged; in three of the renamed ones, two tensors may also change places.

What shapes in their order cannot tell is measured too: networks of other names that share them get one another's
weights, drawn at random, and are compared on random images. DIR keeps what is done, so that a run that was stopped
goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sane_timm.build import import_timm
from sane_torchvision.build import find
from torch import nn

from sane_plugins import Host
from sane_plugins.architectures import import_torchvision, set_input_channels
from sane_plugins.formats import from_state_dict
from sane_plugins.recognition import (
    LEAST_TENSORS,
    build_on_meta,
    find_by_order,
    find_candidates,
    float_shapes,
    indexed_architectures,
    names_by_place,
)
from sane_plugins.runtime import seeded

RESULTS = Path(__file__).parent / "results"
DAMAGED = 3  # of each network
CLASSES, CHANNELS, PREFIX = 5, 1, "module._orig_mod."
INDEX = Path(__file__).parents[1] / "sane_plugins" / "data" / "architectures.json.xz"
_SECONDS = """
import time
from sane_plugins.recognition import index
started = time.perf_counter()
[*index.find_indexed({})]
print(time.perf_counter() - started)
"""
SIZES = (64, 128, 224)  # pixels of images on which two networks are compared
MOST_VALUES = 2e8  # of a network that is run
TOLERANCE = 1e-3  # of an output's deviation
Shapes = dict[str, tuple[int, ...]]
Build = Callable[[str, int | None], nn.Module]


def candidates(shapes: Mapping[str, tuple[int, ...]], build: Build) -> list[str]:
    """Return the names of the architectures that have these shapes, in whatever form (`timm:x,classes=0`)."""
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    graph = from_state_dict(state, "benchmark")
    found = find_candidates(graph) or find_by_order(graph, build)
    return [x.name.partition(",")[0] for x in found]


def renamed(shapes: Shapes) -> Shapes:
    """Return shapes under names of modules that nobody uses; attributes (`weight`) stay."""

    def of(key: str) -> str:
        *modules, attribute = key.split(".")
        return ".".join([*(hashlib.sha256(x.encode()).hexdigest()[:8] for x in modules), attribute])

    return {of(key): shape for key, shape in shapes.items()}


def builders(name: str) -> Mapping[str, Callable[[], nn.Module]]:
    """Return what builds a network of another class count, and one of other input channels."""
    library, _, name = name.partition(":")
    if library == "timm":
        create = import_timm().create_model
        return {
            "classes": lambda: create(name, num_classes=CLASSES),
            "channels": lambda: create(name, in_chans=CHANNELS),
        }
    spec = find(name)

    def with_channels() -> nn.Module:
        module = spec.build(None)
        set_input_channels(module, CHANNELS, name, spec.image_size)
        return module

    has_classes = "num_classes" in spec.parameters
    return {
        "classes": lambda: spec.build(CLASSES if has_classes else None),
        "channels": with_channels,
    }


def damaged(shapes: Shapes, rng: random.Random) -> Shapes:
    """Return the shapes of a network with one thing wrong."""
    shapes = dict(shapes)
    keys = [*shapes]
    way = rng.randrange(5)
    key = rng.choice(keys)
    if way == 0:
        shapes[f"{key}_"] = shapes.pop(key)
    elif way == 1:
        del shapes[key]
    elif way == 2:
        shapes[f"{key}.extra"] = (rng.randrange(1, 9),)
    elif way == 3:
        # A kernel's input channels and a lone vector may be others of the same architecture.
        key = rng.choice([k for k in keys if len(shapes[k]) and shapes[k][0] > 1])
        shapes[key] = (shapes[key][0] + rng.choice((-1, 1)), *shapes[key][1:])
    else:
        other = rng.choice([k for k in keys if shapes[k] != shapes[key]] or [key])
        shapes[key], shapes[other] = shapes[other], shapes[key]
    return shapes


def disordered(shapes: Shapes, rng: random.Random) -> Shapes:
    """Return renamed shapes with one thing wrong; of two shapes that differ, the tensors may change places."""
    if rng.randrange(6):
        return damaged(shapes, rng)
    keys = [*shapes]
    one = rng.randrange(len(keys))
    other = rng.choice([i for i, k in enumerate(keys) if shapes[k] != shapes[keys[one]]] or [one])
    keys[one], keys[other] = keys[other], keys[one]
    return {key: shapes[key] for key in keys}


def row(name: str, seed: int, host: Host) -> dict[str, Any]:
    """Return how a network was recognised in each form, and damaged."""
    found: dict[str, Any] = {"name": name}
    for form, build in builders(name).items():
        try:
            module = build_on_meta(build)
        except Exception as error:  # some networks take no other channels
            found[form] = f"not built: {error}"[:200]
            continue

        def build_named(other: str, classes: int | None, own: nn.Module = module) -> nn.Module:
            return own if (other, classes) == (name, CLASSES) else host.build(other, classes)

        shapes = float_shapes(module)
        found[form] = name in candidates(shapes, build_named)
        if form == "classes":
            prefixed = {PREFIX + k: x for k, x in shapes.items()}
            found["prefix"] = name in candidates(prefixed, build_named)
            rng, other = random.Random(seed), renamed(shapes)
            found["renamed"] = name in candidates(other, build_named)
            found["tensors"] = len(shapes)
            tries = [damaged(shapes, rng) for _ in range(DAMAGED)]
            tries += [disordered(other, rng) for _ in range(DAMAGED)]
            wrong = [candidates(x, build_named) for x in tries]
            found["damaged"] = [x for x in wrong[:DAMAGED] if x]
            found["damaged renamed"] = [x for x in wrong[DAMAGED:] if x]
            found["candidates"] = len(candidates(shapes, build_named))
    return found


def pairs_across_names() -> list[tuple[str, str]]:
    """Return networks of different names that have the same shapes in the same order."""
    alike: dict[tuple[str, str], dict[str, str]] = {}
    for x in indexed_architectures():
        if x.order and "," not in x.source:
            group = alike.setdefault((x.order.names, x.order.shapes), {})
            group.setdefault(x.signature.names, x.source)
    return [(first, x) for first, *rest in (v.values() for v in alike.values()) for x in rest]


def compared(one: str, other: str, host: Host) -> str:
    """Return whether two networks compute the same with the same weights: `same`, `other`, or why not known."""
    shapes, theirs = (float_shapes(build_on_meta(partial(host.build, x))) for x in (one, other))
    names = names_by_place(theirs, shapes)
    if names is None:
        return "other modules"
    if sum(torch.Size(x).numel() for x in shapes.values()) > MOST_VALUES:
        return "too large"
    rng = torch.Generator().manual_seed(0)
    with seeded(rng):
        modules = [host.build(x).eval() for x in (one, other)]
    state = modules[0].state_dict()
    for value in state.values():
        if value.is_floating_point() and value.ndim == 1:  # fresh norms hide what branches compute
            value.uniform_(0.5, 1.5, generator=rng)
    modules[1].load_state_dict({key: state[name] for key, name in names.items()}, strict=False)
    for size in SIZES:
        images = torch.randn(2, 3, size, size, generator=rng)
        try:
            with torch.no_grad():
                ours, others = (module(images) for module in modules)
        except Exception:  # it does not take images of this size
            continue
        return "same" if (ours - others).abs().max() < TOLERANCE * ours.std() else "other"
    return "not run"


def across(work: Path) -> list[dict[str, str]]:
    """Return how networks that share shapes in their order compare, going on where the last run stopped."""
    file, host = work / "across.jsonl", Host.installed()
    rows = [json.loads(line) for line in file.open()] if file.exists() else []
    done = {(x["one"], x["other"]) for x in rows}
    with file.open("a") as lines:
        for one, other in pairs_across_names():
            if (one, other) not in done:
                rows.append({"one": one, "other": other, "compared": compared(one, other, host)})
                lines.write(json.dumps(rows[-1]) + "\n")
                lines.flush()
    return rows


def survey(work: Path, every: int) -> list[dict[str, Any]]:
    """Return the rows of all networks, going on where the last run stopped."""
    work.mkdir(parents=True, exist_ok=True)
    file, host = work / "recognition.jsonl", Host.installed()
    rows = [json.loads(line) for line in file.open()] if file.exists() else []
    done = {x["name"] for x in rows}
    torchvision = [f"torchvision:{x}" for x in import_torchvision().models.list_models()]
    names = [*torchvision, *(f"timm:{x}" for x in import_timm().list_models())]
    with file.open("a") as lines:
        for seed, name in enumerate(names):
            if seed % every or name in done:
                continue
            try:
                rows.append(row(name, seed, host))
            except Exception as error:
                rows.append({"name": name, "error": f"{type(error).__name__}: {error}"[:200]})
            lines.write(json.dumps(rows[-1]) + "\n")
            lines.flush()
    return rows


def summary(rows: list[dict[str, Any]], pairs: list[dict[str, str]]) -> dict[str, Any]:
    """Return the shares that are recognised, and what the index costs."""
    done = subprocess.run(
        [sys.executable, "-c", _SECONDS], capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = {
        "bytes": INDEX.stat().st_size,
        "seconds": round(float(done.stdout), 3),
    }
    for library in ("torchvision", "timm"):
        own = [x for x in rows if x["name"].startswith(f"{library}:")]
        result[library] = {
            "names": len(own),
            "without channels": sum(isinstance(x.get("channels"), str) for x in own),
            "shared": sum(x.get("candidates", 0) > 1 for x in own),
            **{
                form: sum(x.get(form) is True for x in own)
                for form in ("classes", "channels", "prefix", "renamed")
            },
            "small": sum(x.get("tensors", LEAST_TENSORS) < LEAST_TENSORS for x in own),
            "missing": [x["name"] for x in own if x.get("classes") is not True],
        }
    tried = [x for x in rows if "damaged" in x]
    result["damaged"] = DAMAGED * len(tried)
    result["wrong"] = {x["name"]: x["damaged"] for x in tried if x["damaged"]}
    result["wrong renamed"] = {
        x["name"]: x["damaged renamed"] for x in tried if x["damaged renamed"]
    }
    result["across"] = pairs
    return result


def page(result: Mapping[str, Any]) -> str:
    """Return the page of figures."""
    text = [
        "# Recognition of architectures",
        "",
        "Networks of each name, built without values for 5 classes or one input channel, that are recognised by"
        " names and shapes of their tensors; `shared`: several names have them, and all are told. Written by"
        " `python benchmarks/recognition.py --work DIR`.",
        "",
        "| library | names | another class count | another number of input channels | no such form |"
        f" `{PREFIX}` in front | other names | too few tensors for these | shared |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for library in ("torchvision", "timm"):
        x = result[library]
        text.append(
            f"| {library} | {x['names']} | {x['classes']} | {x['channels']} | {x['without channels']} |"
            f" {x['prefix']} | {x['renamed']} | {x['small']} | {x['shared']} |"
        )
    found = Counter(x["compared"] for x in result["across"])
    text += [
        "",
        f"Of {result['damaged']} networks with one thing wrong (a name, a tensor too many or too few, a length,"
        f" two shapes exchanged), {sum(map(len, result['wrong'].values()))} were recognised; of as many under other"
        f" names (or with two tensors in each other's place), {sum(map(len, result['wrong renamed'].values()))}. The index has"
        f" {result['bytes']:,} bytes, and is read in {result['seconds']:.2f} s.",
        "",
        f"{len(result['across'])} pairs of networks of other names have the same shapes in the same order. With the same"
        f" weights {found['same']} compute the same; {found['other']} compute otherwise, and a prompt is told to be one or the other;"
        f" {found['other modules']} are told apart by how their layers are grouped; {found['too large'] + found['not run']} were not run.",
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure, and write or print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Where rows are kept.")
    parser.add_argument("--every", type=int, default=1, help="Take every N-th name only.")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = survey(arguments.work, arguments.every)
    result = summary(rows, across(arguments.work))
    if arguments.every == 1:
        (RESULTS / "recognition.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / "recognition.md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
