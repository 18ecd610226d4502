"""Every name of torchvision: opened, cut into tokens, put back bit for bit, rebuilt for other tasks.

    python tools/release/torchvision_table.py

writes benchmarks/results/torchvision_models.json and docs/reference/torchvision-models.md. Networks are
filled with numbers, not initialised, which takes longer than all the rest. It goes on where it stopped;
without the results file it starts anew.
"""

from __future__ import annotations

import gc
import json
import logging
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from sane_torchvision import import_torchvision
from sane_torchvision.build import build
from torch import nn

from sane_plugins.architectures import run_on_meta
from sane_plugins.errors import SaneError
from sane_plugins.symmetry import permutation_groups
from sane_plugins.weights import detokenize, from_module, load_into, tokenize

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "torchvision_models.json"
TABLE = ROOT / "docs" / "reference" / "torchvision-models.md"
_HEAD = """# Every network of torchvision

Made by `python tools/release/torchvision_table.py`; do not edit it. Each network is built, filled with numbers,
opened, cut into tokens, put together again and loaded into a second one filled with other numbers; *exact*
means that every tensor of that one is then bit for bit as in the first. *Groups* counts the sets of hidden
channels that may change places. *Classes* and *channels* tell whether `torchvision:NAME,classes=7` and
`,channels=1` and `,channels=5` build a network that runs, on images without values, and gives 7 classes.
*Untouched* tensors hold no weights (counters, index tables); they return as well.

## Other classes, other images, given weights

`torchvision:NAME[,classes=N][,channels=N][@WEIGHTS]`, and likewise `timm:NAME...` with a file for weights:

- Weights tell their own classes and channels: `torchvision:resnet18@mine.pth` needs neither option. WEIGHTS is any
  [file](files.md), an index of shards too, or the name of published weights such as DEFAULT, which are downloaded.
- `classes=N`: the layers whose shapes depend on it are freshly initialised, and a note names them. A network
  without classes, such as those of optical flow, refuses.
- `channels=N`: the convolutions that read the images are found by a run on images without values. Their kernels
  are summed for one channel, so that a grey image gives what its repetition gave, and otherwise repeated in turn and
  scaled by old channels / new channels. Detection networks standardise images themselves: they repeat the figures in
  turn, and average them for one channel, which a note says. Refused are networks where anything but a plain convolution
  reads the images, and those that use their channels elsewhere too (GoogLeNet and Inception with published weights).
- `quantized_*` networks are built, and their published weights read, as they are before quantisation."""
_UNTRACED = """Their code decides by what its inputs are, which a symbolic trace does not know. So it is unknown which
channels belong together, and none are permuted:"""
_TWICE = (torch.rand(1 << 20, generator=torch.Generator().manual_seed(0)) - 0.5).repeat(2)


def fill(module: nn.Module, seed: int) -> None:
    """Give every tensor numbers of its own: a random block, read from another place each time."""
    with torch.no_grad():
        for i, tensor in enumerate(module.state_dict().values()):
            tensor.copy_(_numbers(tensor, seed + i))


def is_filled(module: nn.Module, seed: int) -> bool:
    """Tell whether every tensor has exactly the numbers that `fill` gave it."""
    state = enumerate(module.state_dict().values())
    return all(
        torch.equal(tensor, _numbers(tensor, seed + i).to(tensor.dtype)) for i, tensor in state
    )


def _numbers(tensor: torch.Tensor, place: int) -> torch.Tensor:
    """Return the block from a place of its own, higher by one each time that it comes again."""
    length = len(_TWICE) // 2
    block = _TWICE[977 * place % length :][: min(length, tensor.numel())]
    values = block + torch.arange(-(-tensor.numel() // length))[:, None]
    values = values.flatten()[: tensor.numel()].reshape(tensor.shape)
    return values if tensor.is_floating_point() else (values * 1e6).to(tensor.dtype)


def _empty(source: str) -> nn.Module:
    """Build without initialising where the network allows it: some compute their widths with tensors."""
    try:
        with torch.device("meta"):
            return build(source, None)[0].eval()
    except NotImplementedError:
        return build(source, None)[0].eval()


def _filled(name: str, seed: int) -> nn.Module:
    module = _empty(name)
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        module = module.to_empty(device="cpu")
    fill(module, seed)
    return module


def measure(name: str) -> dict[str, Any]:
    """Return what the table says of one network."""
    module = _filled(name, 0)
    graph = from_module(module, f"torchvision:{name}")
    found: dict[str, Any] = {
        "parameters": graph.size,
        "tensors": len(graph.params),
        "untouched": len(graph.untouched),
        "groups": len(permutation_groups(graph)),
        "notes": list(graph.notes),
        "coverage": graph.coverage,
    }
    if not graph.has_topology:
        found["untraced"] = _why_untraced(module)
    back = detokenize(tokenize(graph, 128), graph)
    fresh = _filled(name, 5000)
    load_into(fresh, back)
    found["exact"] = is_filled(fresh, 0)
    del back, graph, fresh, module
    found["classes"] = _with_classes(name)
    found["channels"] = _with_channels(name)
    return found


def _why_untraced(module: nn.Module) -> str:
    try:
        torch.fx.symbolic_trace(module)
    except Exception as error:  # the table says it
        return f"{type(error).__name__}: {str(error).partition('. ')[0]}"
    return "reason unknown"


def _with_classes(name: str) -> str:
    """Return yes, or why a network of 7 classes is not to be had."""
    try:
        changed, usual = _empty(f"{name},classes=7"), _empty(name)
    except SaneError as error:
        return f"no: {error.needed}"
    if [p.shape for p in changed.parameters()] == [p.shape for p in usual.parameters()]:
        return "no: it does not change"
    output = run_on_meta(changed, 3).output
    return "yes" if not output or output[1] == 7 else f"no: it gives {output[1]}"


def _with_channels(name: str) -> str:
    try:
        for channels in (1, 5):
            _empty(f"{name},channels={channels}")
    except SaneError as error:
        return f"no: {error.found}"
    return "yes"


@click.command()
@click.option("--only", multiple=True, help="Only these names.")
def main(only: tuple[str, ...]) -> None:
    """Measure every name and write the table."""
    logging.getLogger("sane_torchvision").setLevel(logging.ERROR)
    models = import_torchvision().models
    told = {"torch": torch.__version__, "torchvision": version("torchvision")}
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    done = (
        done if done.get("versions") == told else {"versions": told, "networks": {}, "peak_gb": 0}
    )
    names = only or sorted(models.list_models())
    for i, name in enumerate(names):
        if "failed" not in done["networks"].get(name, {"failed": ""}) and not only:
            continue
        start = time.perf_counter()
        try:
            found = measure(name)
        except Exception as error:  # the table says it
            found = {"failed": f"{type(error).__name__}: {error}"}
        done["networks"][name] = {**found, "seconds": round(time.perf_counter() - start, 2)}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        done["peak_gb"] = max(done["peak_gb"], round(peak, 2))
        RESULTS.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
        gc.collect()
        print(f"{i + 1}/{len(names)} {name} {done['networks'][name]['seconds']} s", file=sys.stderr)
    TABLE.write_text(table(done))


def table(results: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    networks = results["networks"]
    exact = sum(bool(x.get("exact")) for x in networks.values())
    seconds = sum(x["seconds"] for x in networks.values())
    told = " and ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [
        _HEAD,
        "",
        f"{told}: {len(networks)} names, {exact} exact, {len(networks) - exact} not;"
        f" {seconds / 60:.1f} minutes, {results['peak_gb']:.1f} GB of memory at most.",
        "",
        "| name | parameters | tensors | untouched | read | groups | exact | classes | channels |",
        "|---" * 9 + "|",
    ]
    lines += [_row(name, x) for name, x in sorted(networks.items())]
    untraced: dict[str, list[str]] = {}
    for name, x in sorted(networks.items()):
        if "untraced" in x:
            untraced.setdefault(x["untraced"], []).append(name)
    lines += ["", "## Networks without groups", "", _UNTRACED, ""]
    lines += [f"- {', '.join(names)}: {why}" for why, names in untraced.items()]
    return "\n".join(lines) + "\n"


def _row(name: str, x: dict[str, Any]) -> str:
    if "failed" in x:
        return f"| {name} | {x['failed']} | | | | | no | | |"
    return (
        f"| {name} | {x['parameters']:,} | {x['tensors']} | {x['untouched']} | {x['coverage']:.0%} |"
        f" {x['groups'] or 'none'} | {'yes' if x['exact'] else 'no'} | {x['classes']} | {x['channels']} |"
    )


if __name__ == "__main__":
    main()
