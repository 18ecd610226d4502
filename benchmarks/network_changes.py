"""What `diff_verdicts.py` does to a network: each change writes a file as an engineer would have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sane_plugins.formats import save_network
from sane_plugins.initialize import TrainOptions, train_epochs
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.tasks import Task
from sane_plugins.weights import WeightGraph, copy_module, from_module

LORA_RANK, LORA_SIZE = 4, 0.05
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
