"""How fast networks become tokens, tokens become networks, and networks are encoded.

    python benchmarks/speed.py [--data ../shared/data]

Every figure is a ratio of times taken next to each other in the same round; the median of the rounds counts.
- Tokenise and detokenise against a copy of all parameters into one fresh flat buffer (`torch.cat`), on a
  float32 ResNet-50 and a network of 100 million values. Tokenising also makes mask and positions.
- Encoding (the shipped SANE, precision `auto`) against the rate of matrix products in the same precision: of
  large square matrices, and of the encoder's own layers on the tokens of one run. Its operations are counted
  as 2 x parameters of linear layers x tokens that windows see, halo included, and attention; and again
  without those that the bfloat16 encoder need not do.
- With --data: heads fitted on float32 features of published networks, asked with bfloat16 features of others.
All of it twice: on all threads by the clock, and on one thread by the processor's time of that thread, which
other jobs on the machine disturb less. Writes results/speed.json and speed.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import torch
from precision import noise
from torch import nn

from sane_plugins import Host
from sane_plugins.autoencoder import SANE, embedded_sane, halo_windows
from sane_plugins.autoencoder.bfloat16 import precision_dtype
from sane_plugins.autoencoder.positions import POSITION_WIDTH
from sane_plugins.features import EncodeOptions, SaneEncoder
from sane_plugins.weights import SIDE, WeightGraph, detokenize, from_module, tokenize

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("resnet18", "resnet50")
ROUNDS = 15
_RUN = 32 * 80  # tokens that the windows of a batch see
_SQUARE = 2048


def main() -> None:
    """Measure, print and write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder that holds zoos/")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    host = Host.installed()
    torch.manual_seed(0)
    built = {name: from_module(host.build(f"torchvision:{name}")) for name in NETWORKS}
    wide = from_module(nn.Sequential(*(nn.Linear(5_000, 5_000) for _ in range(4))))
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    result["tokens"], result["encode"] = [], []
    for threads in sorted({1, torch.get_num_threads()}, reverse=True):
        torch.set_num_threads(threads)
        for name, graph in (("resnet50", built["resnet50"]), ("100 million", wide)):
            result["tokens"].append(tokens(name, graph, chosen.rounds))
        result["encode"] += [encoding(name, built[name], chosen.rounds) for name in NETWORKS]
    torch.set_num_threads(result["threads"])
    if chosen.data is not None:
        result["noise"] = noise(chosen.data)
    (RESULTS / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "speed.md").write_text(table(result))
    print(table(result))


def timed(work: Callable[[], object]) -> float:
    clock = time.thread_time if _threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def rounds(works: Mapping[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Return the seconds of each work in each round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for i in range(count + 1):
        for name, work in works.items():
            seconds = timed(work)
            if i:
                found[name].append(seconds)
    return found


def tokens(name: str, graph: WeightGraph, count: int) -> dict[str, Any]:
    """Compare cutting and joining tokens with copying all values."""
    width = embedded_sane().config.token_width
    cut = tokenize(graph, width)
    seconds = rounds(
        {
            "copy": lambda: torch.cat([tensor.reshape(-1) for _, tensor in graph.items()]),
            "tokenize": lambda: tokenize(graph, width),
            "detokenize": lambda: detokenize(cut, graph),
        },
        count,
    )
    rates = {f"{key}_million_per_s": graph.size / median(x) / 1e6 for key, x in seconds.items()}
    ratios = {
        f"{key}_of_copy": _ratio(seconds["copy"], seconds[key])
        for key in ("tokenize", "detokenize")
    }
    return {"network": name, "threads": _threads(), "values": graph.size, **rates, **ratios}


def encoding(name: str, graph: WeightGraph, count: int) -> dict[str, Any]:
    """Compare encoding with matrix products of the same precision."""
    model = embedded_sane()
    dtype = precision_dtype("auto", torch.device("cpu"))
    options = EncodeOptions(latents=False)
    counted, done = operations(model, graph)
    square = torch.randn(_SQUARE, _SQUARE).to(dtype)
    pairs = _own_layers(model, dtype)
    own = sum(2 * x.shape[0] * w.numel() for x, w in pairs)
    with torch.inference_mode():
        seconds = rounds(
            {
                "square": lambda: [square @ square for _ in range(5)],
                "layers": lambda: [nn.functional.linear(x, w) for x, w in pairs],
                "layers_apart": lambda: _apart(pairs),
                "encode": lambda: SaneEncoder(model).encode(graph, options),
            },
            count,
        )
    work = {"square": 5 * 2 * _SQUARE**3, "layers": own, "layers_apart": own * _threads()}
    # Whichever way of using all cores is faster is the machine's rate.
    best = [
        min(a, b / _threads())
        for a, b in zip(seconds["layers"], seconds["layers_apart"], strict=True)
    ]
    return {
        "network": name,
        "threads": _threads(),
        "values": graph.size,
        "precision": str(dtype).removeprefix("torch."),
        "seconds": median(seconds["encode"]),
        "gflop": counted / 1e9,
        "gflop_done": done / 1e9,
        **{f"{key}_gflops": work[key] / median(seconds[key]) / 1e9 for key in work},
        **{f"{key}_gflops_best": work[key] / min(seconds[key]) / 1e9 for key in work},
        "encode_gflops": counted / median(seconds["encode"]) / 1e9,
        "encode_gflops_best": counted / min(seconds["encode"]) / 1e9,
        "of_square": _ratio(seconds["square"], seconds["encode"]) * counted / work["square"],
        "of_layers": _ratio(best, seconds["encode"]) * counted / own,
        "done_of_square": _ratio(seconds["square"], seconds["encode"]) * done / work["square"],
        "done_of_layers": _ratio(best, seconds["encode"]) * done / own,
    }


def operations(model: SANE, graph: WeightGraph) -> tuple[int, int]:
    """Return operations of the encoder as counted for the model, and those that are done."""
    config = model.config
    own = len(graph.token_layout(config.token_width))
    seen = halo_windows.visible_tokens(own, config.window, config.halo)
    width, span, layers = config.model_width, seen.shape[1], config.layers
    first = 2 * width * (config.token_width + SIDE + POSITION_WIDTH)
    last = 2 * width * config.latent_width
    query, rest, attention = 2 * width**2, 2 * width**2 * 9, 4 * span * width
    block = 3 * query + rest + attention
    counted = seen.numel() * (first + layers * block + last)
    once = own + len(seen) // 32 * 2 * config.halo
    done = once * first + seen.numel() * ((layers - 1) * block + 2 * query)
    return counted, done + own * (query + rest + attention + last)


def _own_layers(model: SANE, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return inputs and weights of one encoder block at the size of a run."""
    found = []
    for name, parameter in model.encoder.layers[0].named_parameters():
        if parameter.ndim == 2 and "norm" not in name:
            found.append((torch.randn(_RUN, parameter.shape[1]).to(dtype), parameter.to(dtype)))
    return found


def _apart(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Multiply once per core, each on a thread of its own."""
    before = _threads()
    if before == 1:
        for x, w in pairs:
            nn.functional.linear(x, w)
        return

    def work() -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            for x, w in pairs:
                nn.functional.linear(x, w)

    threads = [Thread(target=work) for _ in range(before)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(before)


def _threads() -> int:
    return torch.get_num_threads()


def _ratio(base: Sequence[float], other: Sequence[float]) -> float:
    """Return the median over rounds of how often `other` fits into `base`."""
    return median(a / b for a, b in zip(base, other, strict=True))


def table(result: Mapping[str, Any]) -> str:
    """Return everything as markdown tables."""
    head = f"{result['threads']} threads, torch {result['torch']}. Written by `python benchmarks/speed.py`"
    lines = ["# Speed", "", f"{head}, whose docstring says what is compared."]
    lines += _grid(
        result["tokens"],
        {
            "network": "network",
            "threads": "threads",
            "values": "values",
            "copy_million_per_s": "copy, M/s",
            "tokenize_million_per_s": "tokenise, M/s",
            "detokenize_million_per_s": "detokenise, M/s",
            "tokenize_of_copy": "tokenise / copy",
            "detokenize_of_copy": "detokenise / copy",
        },
    )
    lines += _grid(
        result["encode"],
        {
            "network": "network",
            "threads": "threads",
            "precision": "precision",
            "seconds": "seconds",
            "encode_gflops": "encoder, GFLOP/s",
            "square_gflops": "square matrices",
            "layers_gflops": "own layers",
            "layers_apart_gflops": "own layers, a thread each",
            "of_square": "encoder / square",
            "of_layers": "encoder / own layers",
            "done_of_square": "operations done / square",
            "done_of_layers": "operations done / own layers",
        },
    )
    lines += _grid(
        result.get("noise", []),
        {
            "zoo": "zoo",
            "property": "property",
            "median_shift": "shift, median",
            "largest_shift": "shift, largest",
            "median_interval": "interval, median",
            "largest_shift_of_interval": "largest shift / interval",
            "error_float32": "error, float32",
            "error_bfloat16": "error, bfloat16",
            "known_kind_changed": "known kind changed",
        },
    )
    return "\n".join(lines) + "\n"


def _grid(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> list[str]:
    """Return a blank line and a table of some columns under other names; nothing without rows."""
    if not rows:
        return []
    lines = ["", f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(_cell(row[key]) for key in columns)} |" for row in rows]


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


if __name__ == "__main__":
    main()
