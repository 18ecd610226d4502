"""Every name of torchvision: opened, cut into tokens, put back bit for bit, rebuilt for other tasks.

    python benchmarks/torchvision_models.py

writes benchmarks/results/torchvision_models.json and docs/reference/torchvision-models.md. Networks are
filled with numbers, not initialised, which takes longer than all the rest. It goes on where it stopped.
"""

from __future__ import annotations

import gc
import json
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

from sane_plugins import Host
from sane_plugins.errors import SaneError
from sane_plugins.weights import symmetry
from sane_plugins.weights.modules import from_module, load_into
from sane_plugins.weights.tokens import detokenize, tokenize

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "torchvision_models.json"
TABLE = ROOT / "docs" / "reference" / "torchvision-models.md"
_HEAD = """# Every network of torchvision

Made by `python benchmarks/torchvision_models.py`; do not edit it. Each network is opened, cut into tokens,
put together again and loaded into the module; *exact* means that every tensor came back bit for bit.
*Groups* counts the sets of hidden channels that may change places (none where the network cannot be
traced); *classes* and *channels* whether `torchvision:NAME,classes=7` and `,channels=1` build a network."""
_BLOCK = torch.rand(1 << 20, generator=torch.Generator().manual_seed(0)) - 0.5


def fill(module: nn.Module) -> None:
    """Give every tensor numbers of its own: a random block, read from another place each time."""
    with torch.no_grad():
        for i, tensor in enumerate(module.state_dict().values()):
            tensor.copy_(_numbers(tensor, i))


def _numbers(tensor: torch.Tensor, place: int) -> torch.Tensor:
    times = -(-tensor.numel() // len(_BLOCK))
    block = _BLOCK.roll(977 * place).repeat(times)[: tensor.numel()].reshape(tensor.shape)
    return block if tensor.is_floating_point() else (block * 100).to(tensor.dtype)


def is_filled(module: nn.Module) -> bool:
    """Tell whether every tensor has exactly the numbers that `fill` gave it."""
    state = enumerate(module.state_dict().values())
    return all(torch.equal(tensor, _numbers(tensor, i).to(tensor.dtype)) for i, tensor in state)


def _empty(source: str) -> nn.Module:
    """Build without initialising where the network allows it: some compute their widths with tensors."""
    try:
        with torch.device("meta"):
            module = build(source, None)[0]
        return module.to_empty(device="cpu").eval()
    except NotImplementedError:
        return build(source, None)[0].eval()


def measure(name: str) -> dict[str, Any]:
    """Return what the table says of one network."""
    module = _empty(name)
    fill(module)
    graph = from_module(module, f"torchvision:{name}")
    found: dict[str, Any] = {
        "parameters": graph.size, "tensors": len(graph.params), "untouched": len(graph.untouched),
        "groups": len(symmetry.groups(graph)), "notes": list(graph.notes), "coverage": graph.coverage,
    }  # fmt: skip
    back = detokenize(tokenize(graph, 128), graph)
    with torch.no_grad():
        for param in graph.params:
            graph.tensors[param.key].zero_()
    load_into(module, back)
    found["exact"] = is_filled(module)
    del back, graph, module
    for option in ("classes=7", "channels=1", "channels=5"):
        found[option] = _changed(f"{name},{option}")
    return found


def _changed(source: str) -> str:
    try:
        _empty(source)
    except SaneError as error:
        return error.needed if "classes=" in source else error.found
    return "yes"


@click.command()
@click.option("--only", multiple=True, help="Only these names.")
def main(only: tuple[str, ...]) -> None:
    """Measure every name and write the table."""
    models = import_torchvision().models
    told = {"torch": torch.__version__, "torchvision": version("torchvision")}
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    done = done if done.get("versions") == told else {"versions": told, "networks": {}}
    Host.installed()
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
        done["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        RESULTS.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n")
        gc.collect()
        print(f"{i + 1}/{len(names)} {name} {done['networks'][name]['seconds']} s", file=sys.stderr)
    TABLE.write_text(table(done["networks"]))


def table(networks: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    exact = sum(bool(x.get("exact")) for x in networks.values())
    lines = [_HEAD, "", f"{len(networks)} names, {exact} exact, {len(networks) - exact} not.", ""]
    lines += ["| name | parameters | tensors | groups | exact | classes | channels |", "|---" * 7 + "|"]
    for name, x in sorted(networks.items()):
        if "failed" in x:
            lines.append(f"| {name} | {x['failed']} | | | no | | |")
            continue
        lines.append(
            f"| {name} | {x['parameters']:,} | {x['tensors']} | {x['groups'] or 'none'} |"
            f" {'yes' if x['exact'] else 'no'} | {_short(x['classes=7'])} | {_short(x['channels=1'])} |"
        )
    return "\n".join(lines) + "\n"


def _short(told: str) -> str:
    return told if told == "yes" else f"no: {told.rpartition(', and ')[2]}"


if __name__ == "__main__":
    main()
