"""Write the index of architectures that files are recognised by, `sane_plugins/data/architectures.json.xz`.

    python tools/release/architecture_index.py --work DIR

Builds every network of torchvision and timm on the meta device for several numbers of classes and input
channels, and traces it: an hour or two on one core. Where several have the same names and shapes, and a trace sees
more of one than of another, it is tried on random weights whether the channels of one may change places in the
other. What is done is kept in DIR, line by line, so that a run that was stopped goes on; another version of a
library, or of what traces networks, needs another DIR.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sane_timm.build import import_timm
from sane_torchvision.build import find
from torch import nn

from sane_plugins import Host
from sane_plugins.architectures import ModelSpec, import_torchvision, set_input_channels
from sane_plugins.recognition import (
    IndexedArchitecture,
    Length,
    Signature,
    build_on_meta,
    fit_lengths,
    float_shapes,
    kinds_text,
    layer_kinds,
    ordered_signature,
    pack_index,
    topology_digest,
)
from sane_plugins.runtime import seeded
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import from_module, load_into

INDEX = Path(__file__).parents[2] / "sane_plugins" / "data" / "architectures.json.xz"
LIBRARIES = ("torchvision", "timm")
CHANNELS = 3
SIZES = (64, 128, 224, 299)  # pixels of images on which two networks are compared
TOLERANCE = 1e-3  # of an output's deviation; a channel out of place changes it by about one
MANY = 1000  # channels and one class more, then one channel and two classes more


@dataclass(frozen=True)
class Form:
    """A network under the name that a host builds, and how it is built for classes and channels.

    `classes` is a number that it can be built for, None where it takes none.
    """

    source: str
    build: Callable[[int | None, int], nn.Module]
    classes: int | None


def torchvision_forms() -> Iterator[Form]:
    """Yield torchvision's networks, with and without auxiliary heads."""

    def build(spec: ModelSpec, with_aux: bool, classes: int | None, channels: int) -> nn.Module:
        module = spec.build(classes, with_aux)
        if channels != CHANNELS:
            set_input_channels(module, channels, spec.label, spec.image_size)
        return module

    for name in import_torchvision().models.list_models():
        spec = find(name)
        classes = 7 if "num_classes" in spec.parameters else None
        yield Form(spec.label, partial(build, spec, False), classes)
        if spec.has_aux:
            yield Form(f"{spec.label},aux=1", partial(build, spec, True), classes)


def timm_forms() -> Iterator[Form]:
    """Yield timm's networks, with and without their classifiers."""
    timm = import_timm()

    def build(name: str, classes: int | None, channels: int) -> nn.Module:
        options = {} if channels == CHANNELS else {"in_chans": channels}
        module: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes or 0, **options
        )
        return module

    for name in timm.list_models():
        yield Form(f"timm:{name}", partial(build, name), 7)
        yield Form(f"timm:{name},classes=0", partial(build, name), None)


def signature(form: Form) -> Signature:
    """Return what a network is known by; of some that take no other channels, for these alone."""

    def shapes(more_classes: int, channels: int) -> dict[str, tuple[int, ...]]:
        classes = None if form.classes is None else form.classes + more_classes
        return float_shapes(build_on_meta(lambda: form.build(classes, channels)))

    base, counts = shapes(0, CHANNELS), (form.classes or 0, CHANNELS)
    try:
        more, check = shapes(1, CHANNELS + MANY), shapes(2, CHANNELS + 1)
    except Exception as error:  # any code runs in a constructor
        logging.warning("%s: only with %d channels (%s)", form.source, CHANNELS, error)
        more, check = shapes(1, CHANNELS), shapes(2, CHANNELS)
    return Signature.of(base, fit_lengths(base, more, check, counts))


def _plain(signature: Signature | None) -> dict[str, Any] | None:
    return None if signature is None else asdict(signature)


def _signature(plain: dict[str, Any]) -> Signature:
    lengths = tuple(Length(**x) for x in plain["lengths"])
    return Signature(plain["names"], plain["shapes"], lengths)


def row(form: Form, host: Host) -> dict[str, Any]:
    """Return what the index holds of a network."""
    known_by = signature(form)
    module = build_on_meta(lambda: host.build(form.source, form.classes))
    if Signature.of(float_shapes(module), known_by.lengths) != known_by:
        raise ValueError("the host builds another network of that name")
    network = from_module(module)
    return {
        "source": form.source,
        **asdict(known_by),
        "kinds": kinds_text(layer_kinds(network)),
        "topology": topology_digest(network),
        "order": _plain(ordered_signature(known_by, float_shapes(module))),
    }


def survey(work: Path) -> list[dict[str, Any]]:
    """Return the rows of all networks, going on where the last run stopped."""
    work.mkdir(parents=True, exist_ok=True)
    file, host = work / "rows.jsonl", Host.installed()
    rows = [json.loads(line) for line in file.open()] if file.exists() else []
    done = {row["source"] for row in rows}
    with file.open("a") as lines:
        for form in (*torchvision_forms(), *timm_forms()):
            if form.source in done:
                continue
            try:
                rows.append(row(form, host))
            except Exception as error:  # one network less in the index, and this says which
                logging.warning("%s is left out: %s", form.source, error)
                continue
            lines.write(json.dumps(rows[-1]) + "\n")
            lines.flush()
    return rows


def merge_topologies(rows: list[dict[str, Any]], host: Host) -> None:
    """Give one digest to networks of the same names and shapes in which the same channels may change places."""
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for found in rows:
        alike.setdefault((found["names"], found["shapes"]), []).append(found)
    for first, *others in alike.values():
        for other in others:
            if other["topology"] != first["topology"] and _may_stand_for(first, other, host):
                other["topology"] = first["topology"]
        if not others:
            first["topology"] = ""  # nothing to compare with


def _may_stand_for(first: dict[str, Any], other: dict[str, Any], host: Host) -> bool:
    """Return whether permuting another network's channels as the first one's keeps what it computes."""
    rng = torch.Generator().manual_seed(0)
    classes = 7 if any(x["per_class"] for x in other["lengths"]) else None
    network = from_module(build_on_meta(lambda: host.build(first["source"], classes)))
    groups = permutation_groups(network)
    with seeded(rng):
        module = host.build(other["source"], classes).eval()
    for part in module.modules():
        if isinstance(
            part, nn.modules.batchnorm._BatchNorm
        ):  # fresh ones are the same for all channels
            for tensor in (*part.parameters(), *part.buffers()):
                if tensor.is_floating_point():
                    tensor.data.uniform_(0.5, 1.5, generator=rng)
    for size in SIZES:
        images = torch.randn(2, CHANNELS, size, size, generator=rng)
        try:
            expected = _output(module, images)
        except Exception:  # it does not take images of this size
            continue
        permuted = permute(from_module(module), random_permutations(groups, rng), groups)
        load_into(module, permuted)
        return bool((_output(module, images) - expected).abs().max() < TOLERANCE * expected.std())
    return False


@torch.no_grad()
def _output(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output = module(images)
    return output if isinstance(output, torch.Tensor) else output[0]


def _order(found: dict[str, Any]) -> tuple[int, int, str]:
    """Order by library, and put the plain form of a name before those that add to it."""
    library, _, name = found["source"].partition(":")
    return LIBRARIES.index(library), len(name), name


def main() -> None:
    """Survey all networks, and write the index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Where rows are kept.")
    rows = sorted(survey(parser.parse_args().work), key=_order)
    merge_topologies(rows, Host.installed())
    architectures = [
        IndexedArchitecture(
            found["source"],
            _signature(found),
            found["kinds"],
            found["topology"],
            found["order"] and _signature(found["order"]),
        )
        for found in rows
    ]
    INDEX.write_bytes(pack_index(architectures))
    print(f"{len(architectures)} networks, {INDEX.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
