"""Are counted costs right, and how well is latency predicted?

    python benchmarks/cost.py [--rounds 8] [--seconds 0.1] [--priority 0] [--only counts|latency]

MACs of 30 networks of torchvision, counted from shapes alone, against torch's FLOP counter in a real pass (attention
written out, as that counter passes over the CPU's fused kernels), and of ONNX exports of seven of them. Then latency: every network
is timed on one thread in processor time, which other programs of the machine hardly move, in rounds over all networks; the least of
the rounds' medians counts. Each network's latency is predicted from those of the other 29. The form of the prediction was settled on 30 networks
of timm. `--priority -12` raises the process's priority while it times, where that is allowed. Writes results/cost.json and cost.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sane_plugins import Host
from sane_plugins.cost import (
    CostOptions,
    Latency,
    LatencyOptions,
    NetworkCost,
    find_network,
    fit_latency,
    measure_latency,
)

RESULTS = Path(__file__).parent / "results"
NETWORKS = (
    *(
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "efficientnet_b1",
        "efficientnet_b2",
    ),
    *("efficientnet_v2_s", "googlenet", "inception_v3", "mnasnet0_5", "mnasnet1_0", "mobilenet_v2"),
    *(
        "mobilenet_v3_large",
        "mobilenet_v3_small",
        "regnet_x_400mf",
        "regnet_x_1_6gf",
        "regnet_y_400mf",
    ),
    *(
        "regnet_y_1_6gf",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnext50_32x4d",
        "shufflenet_v2_x0_5",
    ),
    *(
        "shufflenet_v2_x1_0",
        "squeezenet1_0",
        "squeezenet1_1",
        "swin_t",
        "vgg11",
        "vit_b_16",
        "vit_b_32",
    ),
)
EXPORTED = (
    *("densenet121", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x1_0"),
    *("squeezenet1_1", "vit_b_32"),
)
SIZE = 224
RIVALS = ("macs", "activations", "parameters")


def main() -> None:
    """Count, time, predict, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--priority", type=int, default=0)
    parser.add_argument("--only", choices=["counts", "latency"], help="leave the other as it is")
    chosen = parser.parse_args()
    host, path = Host.installed(), RESULTS / "cost.json"
    results: dict[str, Any] = json.loads(path.read_text()) if chosen.only else {}
    costs: dict[str, NetworkCost] = {}
    modules: dict[str, nn.Module] = {}
    for name in NETWORKS:
        source = f"torchvision:{name}"
        costs[name] = host.cost(source, CostOptions(size=SIZE))
        modules[name] = find_network(source, host.open, host.recognizer).with_values().eval()
    if chosen.only != "latency":
        results["macs"] = counts(host, costs, modules)
    if chosen.only != "counts":
        options = LatencyOptions(warmup=1, seconds=chosen.seconds, clock="cpu", threads=1)
        rounds = []
        for _ in range(chosen.rounds):
            rounds.append(timed(modules, costs, options, chosen.priority))
            print({name: round(1000 * x.seconds, 1) for name, x in rounds[-1].items()}, flush=True)
        results["latency"] = predicted(costs, rounds)
        results["way"] = {"rounds": chosen.rounds, "processor": processor()}
    path.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "cost.md").write_text(table(results))
    print(table(results))


def counts(
    host: Host, costs: Mapping[str, NetworkCost], modules: Mapping[str, nn.Module]
) -> dict[str, dict[str, int | None]]:
    """Return the MACs of every network: ours, torch's, and those of some ONNX exports."""
    found = {}
    for name, module in modules.items():
        exported = exported_macs(host, module) if name in EXPORTED else None
        found[name] = {"macs": costs[name].macs, "torch": torch_macs(module), "onnx": exported}
        print(name, found[name], flush=True)
    return found


def torch_macs(module: nn.Module) -> int:
    """Return the MACs that torch's counter sees in a pass over real values."""
    image, fast_path = torch.zeros(1, 3, SIZE, SIZE), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation, which it passes over
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as found:
            module(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return int(found.get_total_flops() // 2)


def exported_macs(host: Host, module: nn.Module) -> int:
    """Return the MACs counted of a network's ONNX file."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "network.onnx"
        with redirect_stdout(io.StringIO()):
            torch.onnx.export(module, (torch.zeros(1, 3, SIZE, SIZE),), str(path), dynamo=False)
        return host.cost(path).macs


def timed(
    modules: Mapping[str, nn.Module],
    costs: Mapping[str, NetworkCost],
    options: LatencyOptions,
    priority: int,
) -> dict[str, Latency]:
    """Time every network once."""
    before = os.nice(0)
    os.nice(priority)
    found = {
        name: measure_latency(module, costs[name].inputs, options, name)
        for name, module in modules.items()
    }
    os.nice(before - os.nice(0))
    return found


def predicted(
    costs: Mapping[str, NetworkCost], rounds: Sequence[Mapping[str, Latency]]
) -> dict[str, Any]:
    """Return measured and predicted latencies by network; each is predicted from the others."""
    measured = {
        name: replace(
            cost,
            latency=min((found[name] for found in rounds), key=lambda latency: latency.seconds),
        )
        for name, cost in costs.items()
    }
    rows = {}
    for name, own in measured.items():
        model = fit_latency([cost for other, cost in measured.items() if other != name])
        estimate = model.predict(own)
        assert estimate is not None and own.latency is not None
        rows[name] = {
            "seconds": own.latency.seconds,
            "rounds": [found[name].seconds for found in rounds],
            "predicted": estimate.seconds,
            "interval": estimate.interval,
            **{key: value for key, value in asdict(own).items() if key in RIVALS},
        }
    return rows


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "unknown"
    )


def table(results: Mapping[str, Any]) -> str:
    """Return the Markdown tables."""
    counted, rows = results["macs"], results["latency"]
    exported = [x for x in counted.values() if x["onnx"] is not None]
    equal = sum(x["macs"] == x["torch"] for x in counted.values())
    equal_onnx = sum(x["macs"] == x["onnx"] for x in exported)
    seconds = np.array([row["seconds"] for row in rows.values()])
    guess = np.array([row["predicted"] for row in rows.values()])
    inside = [row["interval"][0] <= row["seconds"] <= row["interval"][1] for row in rows.values()]
    widths = [row["interval"][1] / row["interval"][0] for row in rows.values()]
    ranks = {"predicted from the others": guess}
    ranks |= {f"{name} alone": np.array([row[name] for row in rows.values()]) for name in RIVALS}
    halves = [np.array([min(row["rounds"][start::2]) for row in rows.values()]) for start in (0, 1)]
    lines = [
        "| MACs | networks | equal |",
        "|---|---|---|",
        f"| against torch's counter in a real pass | {len(counted)} | {equal} |",
        f"| ONNX exports against their networks | {len(exported)} | {equal_onnx} |",
        "",
        f"| latency of {len(rows)} networks ({results['way']['processor']}, one thread, processor time) |"
        " Kendall's τ | mean relative error | inside the 90 % interval | width of it (median ratio of ends) |",
        "|---|---|---|---|---|",
    ]
    for name, values in ranks.items():
        tau = kendalltau(values, seconds).statistic
        own = name.startswith("predicted")
        error = f"{np.mean(np.abs(guess / seconds - 1)):.0%}" if own else ""
        cover = f"{sum(inside)} of {len(inside)}" if own else ""
        width = f"{np.median(widths):.1f}" if own else ""
        lines.append(f"| {name} | {tau:.2f} | {error} | {cover} | {width} |")
    again = kendalltau(*halves).statistic
    spread = np.mean(np.abs(halves[1] / halves[0] - 1))
    lines.append(f"| every other round against the rest | {again:.2f} | {spread:.0%} | | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
