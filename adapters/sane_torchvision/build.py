"""Build torchvision's networks by name, with any number of classes and any fitting weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature, unwrap
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, get_type_hints

import torch
from torch import nn

from sane_plugins.errors import SourceError
from sane_plugins.weights.files import open_file
from sane_torchvision.load import import_torchvision
from sane_torchvision.surgery import with_channels

_log = logging.getLogger(__name__)
_State = Mapping[str, torch.Tensor]
_Notes = tuple[str, ...]


def build(source: str, classes: int | None) -> tuple[nn.Module, _Notes]:
    """Return the network of NAME[,classes=N][,channels=N][@WEIGHTS], and notes on unfit weights.

    Without weights it is freshly initialised with torch's global generator. With weights of another
    class count the classifier stays fresh. Raises `SourceError` where the name is unknown, where it
    takes no class count, and where the weights are of another architecture.
    """
    named, at, weights = source.partition("@")
    name, options = parsed(named, f"torchvision:{source}")
    classes = options.get("classes", classes)
    builder, label = _builder(name), f"torchvision:{name}"
    notes: _Notes = ()
    if at:
        module, notes = with_weights(builder, label, _state(builder, name, weights), classes)
    else:
        module = _built(builder, label, classes)
    for note in notes:
        _log.warning("%s: %s", source, note)
    if "channels" in options:
        module = with_channels(module, options["channels"], f"torchvision:{source}")
    return module, notes


def parsed(named: str, source: str) -> tuple[str, dict[str, int]]:
    """Split NAME,option=N,... ; raise `SourceError` for an unknown option or a number below 1."""
    name, *texts = named.split(",")
    options: dict[str, int] = {}
    for text in texts:
        option, _, number = text.partition("=")
        if option not in ("classes", "channels") or not number.isdecimal() or not int(number):
            raise SourceError(
                source, f"'{text}' follows the name", "classes=N or channels=N may follow",
                "write NAME,classes=10,channels=1@WEIGHTS",
            )  # fmt: skip
        options[option] = int(number)
    return name, options


def _builder(name: str) -> Callable[..., nn.Module]:
    models = import_torchvision().models
    names = models.list_models()
    if name in names:
        return models.get_model_builder(name)  # type: ignore[no-any-return]
    close = get_close_matches(name, names, n=3)
    raise SourceError(
        f"torchvision:{name}", "torchvision has no such network",
        "one of torchvision.models.list_models() is needed",
        f"did you mean {' or '.join(close)}" if close else "check the name",
    )  # fmt: skip


def _built(
    builder: Callable[..., nn.Module], label: str, classes: int | None, with_aux: bool = False
) -> nn.Module:
    """Build without weights, and without the second heads that only help training."""
    known = _parameters(builder)
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in known:
        options["weights_backbone"] = None  # the default is a download
    if "aux_logits" in known:
        options["aux_logits"] = with_aux
    if "init_weights" in known and known["init_weights"].default is None:
        options["init_weights"] = False  # left open it warns, and draws for minutes
    if classes is not None:
        if "num_classes" not in known:
            raise SourceError(
                label, f"{classes} classes were asked for",
                "this network has no classes", "choose another network",
            )  # fmt: skip
        options["num_classes"] = classes
    return builder(**options)


def _parameters(builder: Callable[..., nn.Module]) -> dict[str, Parameter]:
    """Return what a builder takes, by itself or by the class that it builds and that one's bases."""
    plain = unwrap(builder)
    built = get_type_hints(plain).get("return")
    bases = built.__mro__ if isinstance(built, type) else ()
    found = dict(signature(plain).parameters)
    for base in bases[: bases.index(nn.Module)] if nn.Module in bases else ():
        found = {**_init_parameters(base), **found}
    return found


def _init_parameters(kind: type) -> Mapping[str, Parameter]:
    return signature(vars(kind).get("__init__", object.__init__)).parameters


def _state(builder: Callable[..., nn.Module], name: str, weights: str) -> _State:
    """Return the weights after the `@`: published ones by name, or those of a file."""
    published = import_torchvision().models.get_model_weights(name).__members__
    if weights in published:
        return _published(builder, name, published[weights])
    graph = open_file(Path(weights))
    if graph is None:
        raise SourceError(
            f"torchvision:{name}@{weights}", "these weights are not known",
            "a .pth, .pt or .safetensors file, or the name of published weights is needed",
            f"try {', '.join(published)}" if published else "name a file",
        )  # fmt: skip
    return graph.state_dict()


def _published(builder: Callable[..., nn.Module], name: str, weights: Any) -> _State:
    """Fetch published weights, and let the builder read them: some files have keys of old versions."""
    try:
        # The builder unpickles anything, so the fetched file is proved harmless first.
        weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
        return _own(builder(weights=weights, progress=False))
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise SourceError(
            f"torchvision:{name}", f"{weights.url} cannot be fetched ({error})",
            "its published weights come from there",
            f"fetch the file elsewhere and name it as torchvision:{name}@FILE",
        ) from error  # fmt: skip


def with_weights(
    builder: Callable[..., nn.Module], label: str, state: _State, classes: int | None
) -> tuple[nn.Module, _Notes]:
    """Build the network that the weights are from, or that network with another class count."""
    module = _whole(builder, label, state)
    _require_fit(label, module, state)
    if classes is not None:
        module = _built(builder, label, classes)
    own, fresh = _own(module), _unfit(module, state)
    module.load_state_dict({k: state[k] for k in own.keys() & state.keys() - fresh}, strict=False)
    return module, tuple(_notes(own, state, fresh))


def _whole(builder: Callable[..., nn.Module], label: str, state: _State) -> nn.Module:
    """Build the network with the second heads and the class count that the weights have."""
    known = _parameters(builder)
    module = _built(builder, label, None)
    with_aux = "aux_logits" in known and bool(state.keys() - _own(module))
    if with_aux:
        module = _built(builder, label, None, with_aux=True)
    counts = {len(state[key]) for key in _unfit(module, state) if state[key].ndim}
    if len(counts) != 1 or "num_classes" not in known:
        return module
    return _built(builder, label, counts.pop(), with_aux)


def _unfit(module: nn.Module, state: _State) -> set[str]:
    """Return the keys whose shapes differ."""
    own = _own(module)
    return {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape}


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


def _require_fit(label: str, module: nn.Module, state: _State) -> None:
    own = _own(module)
    # Files from before torch 0.4.1 lack the integer counter, which nothing reads in evaluation.
    missing = {k for k in own.keys() - state.keys() if own[k].is_floating_point()}
    wrong = [*sorted(_unfit(module, state)), *sorted(missing), *sorted(state.keys() - own.keys())]
    if wrong:
        key = wrong[0]
        there, here = (
            f"has {tuple(x[key].shape)}" if key in x else "lacks it" for x in (state, own)
        )
        raise SourceError(
            f"{label}, '{key}'", f"the file of weights {there}", f"the network {here}",
            "check which network the weights are from",
        )  # fmt: skip


def _notes(own: _State, state: _State, other: set[str]) -> list[str]:
    notes = []
    if other:
        notes.append(f"freshly initialised for another class count: {', '.join(sorted(other))}")
    if extra := sorted(state.keys() - own.keys()):
        notes.append(f"in the weights but not in the network: {', '.join(extra)}")
    return notes
