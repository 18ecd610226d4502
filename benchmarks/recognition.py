"""Which architectures of torchvision and timm are recognised by their names and shapes, and what is by mistake.

    python benchmarks/recognition.py --work DIR             # full: writes results/recognition.json and .md
    python benchmarks/recognition.py --work DIR --every 50  # a quick look, printed only

Every name of both libraries is built on the meta device for 5 classes, and for one input channel; the first has
`module._orig_mod.` put in front too. It is recognised where its name is among the candidates. In three copies of each
one thing is wrong: a name is changed, a tensor left out or added, a length changed, or two shapes are exchanged.
DIR keeps what is done, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from sane_timm.build import import_timm
from sane_torchvision.build import find
from torch import nn

from sane_plugins.architectures import import_torchvision, set_input_channels
from sane_plugins.formats import from_state_dict
from sane_plugins.recognition import build_on_meta, find_candidates, float_shapes

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
Shapes = dict[str, tuple[int, ...]]


def candidates(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names of the architectures that have these shapes, in whatever form (`timm:x,classes=0`)."""
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = find_candidates(from_state_dict(state, "benchmark"))
    return [x.name.partition(",")[0] for x in found]


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


def row(name: str, seed: int) -> dict[str, Any]:
    """Return how a network was recognised in each form, and damaged."""
    found: dict[str, Any] = {"name": name}
    for form, build in builders(name).items():
        try:
            shapes = float_shapes(build_on_meta(build))
        except Exception as error:  # some networks take no other channels
            found[form] = f"not built: {error}"[:200]
            continue
        found[form] = name in candidates(shapes)
        if form == "classes":
            found["prefix"] = name in candidates({PREFIX + k: x for k, x in shapes.items()})
            rng = random.Random(seed)
            tries = [candidates(damaged(shapes, rng)) for _ in range(DAMAGED)]
            found["damaged"] = [x for x in tries if x]
            found["candidates"] = len(candidates(shapes))
    return found


def survey(work: Path, every: int) -> list[dict[str, Any]]:
    """Return the rows of all networks, going on where the last run stopped."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "recognition.jsonl"
    rows = [json.loads(line) for line in file.open()] if file.exists() else []
    done = {x["name"] for x in rows}
    torchvision = [f"torchvision:{x}" for x in import_torchvision().models.list_models()]
    names = [*torchvision, *(f"timm:{x}" for x in import_timm().list_models())]
    with file.open("a") as lines:
        for seed, name in enumerate(names):
            if seed % every or name in done:
                continue
            try:
                rows.append(row(name, seed))
            except Exception as error:
                rows.append({"name": name, "error": f"{type(error).__name__}: {error}"[:200]})
            lines.write(json.dumps(rows[-1]) + "\n")
            lines.flush()
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
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
                for form in ("classes", "channels", "prefix")
            },
            "missing": [x["name"] for x in own if x.get("classes") is not True],
        }
    tried = [x for x in rows if "damaged" in x]
    result["damaged"] = DAMAGED * len(tried)
    result["wrong"] = {x["name"]: x["damaged"] for x in tried if x["damaged"]}
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
        f" `{PREFIX}` in front | shared |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for library in ("torchvision", "timm"):
        x = result[library]
        text.append(
            f"| {library} | {x['names']} | {x['classes']} | {x['channels']} | {x['without channels']} |"
            f" {x['prefix']} | {x['shared']} |"
        )
    text += [
        "",
        f"Of {result['damaged']} networks with one thing wrong (a name, a tensor too many or too few, a length,"
        f" two shapes exchanged), {sum(map(len, result['wrong'].values()))} were recognised. The index has {result['bytes']:,} bytes,"
        f" and is read in {result['seconds']:.2f} s.",
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    """Measure, and write or print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Where rows are kept.")
    parser.add_argument("--every", type=int, default=1, help="Take every N-th name only.")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    result = summary(survey(arguments.work, arguments.every))
    if arguments.every == 1:
        (RESULTS / "recognition.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / "recognition.md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
