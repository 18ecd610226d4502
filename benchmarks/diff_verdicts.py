"""Does `diff` name what was done to a network? Pairs of files of known relation, and the verdict on each.

    python benchmarks/diff_verdicts.py --data DIR             # reported networks: writes results/diff_verdicts.*
    python benchmarks/diff_verdicts.py --data DIR --settling  # those on which thresholds were settled; printed only

Published networks (two ResNets and a CNN, all of CIFAR-10) and two of torchvision that are trained here for an epoch on
photos. Each is changed in every way of `RELATIVES`, written as an engineer would have the file (torch,
safetensors, ONNX, quantised ONNX), opened by the ordinary way, and compared with the file that it comes from.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from torch import nn

import sane_plugins
from sane_plugins.architectures import import_torchvision, resnet
from sane_plugins.comparison import NetworkComparison, Verdict, compare, judge
from sane_plugins.formats import save_network
from sane_plugins.initialize import TrainOptions, train_epochs
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.tasks import Task, load_task
from sane_plugins.weights import WeightGraph, copy_module, from_module
from sane_plugins.zoo import import_published

RESULTS = Path(__file__).parent / "results"
IMAGES, LORA_RANK, LORA_SIZE = 400, 4, 0.05
PUBLISHED = "akamaster_pytorch_resnet_cifar10/resnet{}.th"
STEMS = {20: "20-12fca82f", 32: "32-d509ac18", 56: "56-4bfd9763"}
State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network that is changed, one of its kind that has nothing to do with it, and images for both."""

    name: str
    module: nn.Module
    stranger: nn.Module
    task: Task
    other_task: Task

    @property
    def image(self) -> torch.Tensor:
        """Return images (2, C, H, W)."""
        return self.task.x_train[:2]

    @property
    def state(self) -> State:
        """Return a copy of the weights."""
        return {key: x.clone() for key, x in self.module.state_dict().items()}


Change = Callable[[Subject, Path], Path]


def main() -> None:
    """Compare all pairs, and write or print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--settling", action="store_true", help="other networks; writes nothing")
    parser.add_argument("--network", default="", help="networks with this word in their name")
    parser.add_argument("--only", default="", help="kinds with this word in their name")
    parser.add_argument("--work", type=Path, help="keeps what is done: a run that stopped goes on")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the exporter, about itself
    logging.disable(logging.WARNING)
    rows = []
    for subject in subjects(arguments.data, arguments.settling, arguments.network):
        with TemporaryDirectory() as folder:
            rows += [*judged(subject, Path(folder), arguments.only, arguments.work)]
    if not (arguments.settling or arguments.only or arguments.network):
        (RESULTS / "diff_verdicts.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        (RESULTS / "diff_verdicts.md").write_text(page(rows))
    right = sum(row["verdict"] in row["expected"] for row in rows)
    print(f"{right} of {len(rows)} right")


def judged(
    subject: Subject, folder: Path, only: str, work: Path | None
) -> Iterator[dict[str, Any]]:
    """Yield the verdict on each relative of a network; `work` has those of earlier runs."""
    original = folder / "original.pt"
    torch.save(subject.module.state_dict(), original)
    for (kind, expected), change in RELATIVES.items():
        if only not in kind:
            continue
        kept = work and work / f"{subject.name}, {kind}.json".replace(" ", "_")
        if kept and kept.exists():
            yield json.loads(kept.read_text())
            continue
        torch.manual_seed(1)
        path = change(subject, folder)
        pair = (path, original) if kind == "widened" else (original, path)
        one, other = (sane_plugins.open(file) for file in pair)
        started = process_time()
        comparison = compare(one, other)
        verdict = judge(comparison)
        row = {
            "network": subject.name,
            "kind": kind,
            "expected": expected.split(" or "),
            "verdict": verdict.kind.value,
            "values": comparison.size,
            "seconds": round(process_time() - started, 2),
            **figures(comparison, verdict),
        }
        mark = "" if row["verdict"] in row["expected"] else "   WRONG"
        print(
            f"{subject.name:22} {kind:28} {row['verdict']:12} {row['seconds']:6}{mark}", flush=True
        )
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(row))
        yield row


def figures(comparison: NetworkComparison, verdict: Verdict) -> dict[str, Any]:
    """Return how many layers each thing happened to, and how far matrices moved."""
    moved = [
        x.relation.distance
        for x in comparison.tensors
        if len(x.a.shape) > 1 and x.change not in ("replaced", "equal") and x.relation.distance
    ]
    return {
        "layers": dict(Counter(layer.change for layer in comparison.layers)),
        "distance": [min(moved), max(moved)] if moved else None,
        "shared": verdict.shared,
    }


def subjects(data: Path, settling: bool, wanted: str) -> Iterator[Subject]:
    """Yield the networks with a word in their name."""

    @cache
    def task(name: str) -> Task:
        path = data / "datasets" / f"{name}.npz"
        whole = load_task(path, 28 if "mnist" in name else None)
        return whole.subset(IMAGES, torch.Generator().manual_seed(0))

    for depth, other in [(20, 32)] if settling else [(32, 56), (56, 32)]:
        if wanted not in f"resnet{depth}, published":
            continue
        yield Subject(
            name=f"resnet{depth}, published",
            module=published(data, depth),
            stranger=published(data, other),
            task=task("cifar10"),
            other_task=task("photos10"),
        )
    zoo_name = "mnist" if settling else "cifar10"
    if wanted in f"{zoo_name}-cnn, published":
        zoo = import_published(data / "zoos" / f"{zoo_name}-cnn.json")
        good = zoo.where(lambda entry: bool(entry.properties["finite"]))
        best = sorted(good.entries, key=lambda e: -float(e.properties["test_accuracy"]))
        other_network = next(x for x in best if x.network != best[0].network)
        yield Subject(
            name=f"{zoo_name}-cnn, published",
            module=zoo.module(best[0]).eval(),
            stranger=zoo.module(other_network).eval(),
            task=task(zoo_name),
            other_task=task("fashion_mnist" if settling else "photos10"),
        )
    photos = ("photos10b", "photos10") if settling else ("photos10", "photos10b")
    for name in ["squeezenet1_1"] if settling else ["mobilenet_v3_small", "shufflenet_v2_x0_5"]:
        if wanted not in f"torchvision {name}":
            continue
        yield Subject(
            name=f"torchvision {name}",
            module=trained(name, task(photos[0]), 0),
            stranger=trained(name, task(photos[0]), 1),
            task=task(photos[0]),
            other_task=task(photos[1]),
        )


def published(data: Path, depth: int) -> nn.Module:
    """Return a published ResNet of CIFAR-10."""
    path = data / "checkpoints" / PUBLISHED.format(STEMS[depth])
    stored = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    module = resnet(depth=depth)
    module.load_state_dict({k.removeprefix("module."): x for k, x in stored.items()})
    return module.eval()


def trained(name: str, task: Task, seed: int) -> nn.Module:
    """Return a network of torchvision after one epoch."""
    torch.manual_seed(seed)
    module: nn.Module = getattr(import_torchvision().models, name)(weights=None, num_classes=10)
    train_epochs(module, task, 1, TrainOptions(), torch.Generator().manual_seed(seed))
    return module.eval()


def tuned(module: nn.Module, task: Task, lr: float) -> nn.Module:
    """Return a copy after one epoch."""
    copy = copy_module(module)
    train_epochs(copy, task, 1, TrainOptions(lr=lr), torch.Generator().manual_seed(3))
    return copy.eval()


def saved(state: Mapping[str, torch.Tensor], path: Path) -> Path:
    """Write a state dict as a torch file."""
    torch.save({key: x.contiguous().clone() for key, x in state.items()}, path)
    return path


def in_another_container(subject: Subject, folder: Path) -> Path:
    path = folder / "copy.safetensors"
    save_network(from_module(subject.module), path, None)
    return path


def renamed(subject: Subject, folder: Path) -> Path:
    names = [*subject.state]
    layers = dict.fromkeys(name.rpartition(".")[0] for name in reversed(names))
    numbers = {layer: f"block.{i}" for i, layer in enumerate(layers)}
    state = {
        f"{numbers[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": x
        for key, x in reversed(subject.state.items())
    }
    return saved(state, folder / "renamed.pt")


def shuffled(graph: WeightGraph) -> WeightGraph:
    """Return a copy with its channels in random order."""
    groups = permutation_groups(graph)
    return permute(graph, random_permutations(groups, torch.Generator().manual_seed(3)), groups)


def permuted(subject: Subject, folder: Path) -> Path:
    return saved(shuffled(from_module(subject.module)).state_dict(), folder / "permuted.pt")


def permuted_and_tuned(subject: Subject, folder: Path) -> Path:
    module = copy_module(subject.module)
    module.load_state_dict(shuffled(from_module(subject.module)).state_dict())
    return saved(tuned(module, subject.task, 1e-3).state_dict(), folder / "permuted_tuned.pt")


def exported(subject: Subject, folder: Path) -> Path:
    path = folder / "exported.onnx"
    torch.onnx.export(copy_module(subject.module).eval(), (subject.image,), str(path), dynamo=False)
    return path


def int8_onnx(subject: Subject, folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"input": subject.image.numpy()}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    source, path = folder / "float.onnx", folder / "int8.onnx"
    module = copy_module(subject.module).eval()
    torch.onnx.export(module, (subject.image,), str(source), dynamo=False, input_names=["input"])
    quantize_static(str(source), str(path), Images(), QuantFormat.QDQ, per_channel=True)
    return path


def four_bits(subject: Subject, folder: Path) -> Path:
    def rounded(x: torch.Tensor) -> torch.Tensor:
        if x.ndim < 2:
            return x
        step = x.abs().flatten(1).amax(1).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1)) / 7
        return (x / step).round() * step

    return saved({key: rounded(x) for key, x in subject.state.items()}, folder / "int4.pt")


def half(subject: Subject, folder: Path) -> Path:
    return saved(copy_module(subject.module).half().state_dict(), folder / "half.pt")


def pruned(share: float, tune: bool = False) -> Change:
    def change(subject: Subject, folder: Path) -> Path:
        module = tuned(subject.module, subject.task, 1e-3) if tune else subject.module
        state = {key: x.clone() for key, x in module.state_dict().items()}
        for key, x in subject.state.items():
            if x.ndim > 1:
                limit = x.abs().flatten().kthvalue(max(1, int(share * x.numel())))[0]
                state[key][x.abs() <= limit] = 0
        return saved(state, folder / "pruned.pt")

    return change


def narrowed(subject: Subject, folder: Path) -> Path:
    """Remove a quarter of the channels of each group, those of least norm in its first tensor."""
    graph = from_module(subject.module)
    state = graph.state_dict()
    cut = {key: x.clone() for key, x in state.items()}
    offsets: dict[tuple[str, int], torch.Tensor] = {}
    for group in permutation_groups(graph):
        if group.blocks > 1:
            continue
        first = group.slices[0]
        norms = first.channels(state[first.key], group.size).flatten(1).norm(dim=1)
        gone = norms.argsort()[: group.size // 4]
        for part in group.slices:
            keep = offsets.setdefault(
                (part.key, part.axis),
                torch.ones(state[part.key].shape[part.axis], dtype=torch.bool),
            )
            entries = gone[:, None] * part.repeat + torch.arange(part.repeat) + part.offset
            keep[entries.flatten()] = False
    for (key, axis), keep in offsets.items():
        cut[key] = cut[key].index_select(axis, keep.nonzero().flatten())
    return saved(cut, folder / "narrow.pt")


def fine_tuned(lr: float, other_task: bool) -> Change:
    def change(subject: Subject, folder: Path) -> Path:
        task = subject.other_task if other_task else subject.task
        return saved(tuned(subject.module, task, lr).state_dict(), folder / "tuned.pt")

    return change


def merged_lora(subject: Subject, folder: Path) -> Path:
    state = subject.state
    for key, x in state.items():
        rows = x.flatten(1) if x.ndim > 1 else x
        if x.ndim > 1 and (rank := min(min(rows.shape) // 8, LORA_RANK)) > 1:
            change = torch.randn(len(rows), rank) @ torch.randn(rank, rows.shape[1])
            state[key] = x + (LORA_SIZE * rows.norm() / change.norm() * change).view_as(x)
    return saved(state, folder / "lora.pt")


def new_head(subject: Subject, folder: Path) -> Path:
    """Replace the last matrix and its bias by new ones, for 7 classes."""
    state = subject.state
    key = [key for key, x in state.items() if x.ndim > 1][-1]
    fan = state[key][0].numel()
    state[key] = torch.randn(7, *state[key].shape[1:]) / fan**0.5
    bias = key.removesuffix("weight") + "bias"
    if bias in state:
        state[bias] = torch.zeros(7)
    return saved(state, folder / "head.pt")


def layer_in_front(subject: Subject, folder: Path) -> Path:
    channels = subject.image.shape[1]
    state = {"adapter.weight": torch.randn(channels, channels, 3, 3), **subject.state}
    return saved(state, folder / "front.pt")


def unrelated(subject: Subject, folder: Path) -> Path:
    return saved(subject.stranger.state_dict(), folder / "stranger.pt")


RELATIVES: Mapping[tuple[str, str], Change] = {
    ("copy in safetensors", "identical"): in_another_container,
    ("renamed, in another order", "same"): renamed,
    ("channels shuffled", "same"): permuted,
    ("ONNX, norms folded", "same or identical"): exported,
    ("float16", "rounded"): half,
    ("int8 ONNX, norms folded", "quantized"): int8_onnx,
    ("4 bits in a torch file", "quantized"): four_bits,
    ("pruned, 30 %", "pruned"): pruned(0.3),
    ("pruned 60 % and trained on", "pruned"): pruned(0.6, tune=True),
    ("channels removed", "pruned"): narrowed,
    ("widened", "widened"): narrowed,
    ("fine-tuned, same task", "fine-tuned"): fine_tuned(1e-4, False),
    ("fine-tuned, other task", "fine-tuned"): fine_tuned(1e-3, True),
    ("shuffled and fine-tuned", "fine-tuned"): permuted_and_tuned,
    ("LoRA merged, rank 2 to 4", "low-rank"): merged_lora,
    ("new head, frozen backbone", "partial"): new_head,
    ("one layer put in front", "partial"): layer_in_front,
    ("stranger of its kind", "unrelated"): unrelated,
}


def page(rows: list[dict[str, Any]]) -> str:
    """Return the results as a page."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    right = sum(row["verdict"] in row["expected"] for row in rows)
    lines = [
        f"{right} of {len(rows)} verdicts are right. Values are those of both networks together, each tensor counted once.",
        "",
        "| what was done | expected | right | verdicts that are not | distance of matrices |",
        "|---|---|---|---|---|",
    ]
    for kind, expected in RELATIVES:
        found = [row for row in rows if row["kind"] == kind]
        wrong = [
            f"{row['verdict']} ({row['network']})"
            for row in found
            if row["verdict"] not in row["expected"]
        ]
        moved = [x for row in found if row["distance"] for x in row["distance"]]
        span = f"{min(moved):.2g} to {max(moved):.2g}" if moved else ""
        count = f"{len(found) - len(wrong)} of {len(found)}"
        lines.append(f"| {kind} | {expected} | {count} | {', '.join(wrong)} | {span} |")
    lines += [
        "",
        "| network | values | processor seconds of a comparison, median and most |",
        "|---|---|---|",
    ]
    for name in names:
        found = [row for row in rows if row["network"] == name]
        seconds = sorted(row["seconds"] for row in found)
        lines.append(
            f"| {name} | {found[0]['values']:,} | {seconds[len(seconds) // 2]:.1f}, {seconds[-1]:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
