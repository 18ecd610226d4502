"""Build a network as its weights need it, and give it those of another class count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, signature, unwrap
from typing import Any, get_type_hints

import torch
from torch import nn

from sane_plugins.architectures.input_channels import with_channels
from sane_plugins.errors import SourceError

State = Mapping[str, torch.Tensor]
Notes = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A builder of networks by its label, what it is always given, and the side of its images."""

    builder: Callable[..., nn.Module]
    label: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    side: int | None = None

    def build(self, classes: int | None, with_aux: bool = False) -> nn.Module:
        """Build without weights, and without the second heads that only help training."""
        options: dict[str, Any] = {"weights": None, **self.fixed}
        if "weights_backbone" in self.takes:
            options["weights_backbone"] = None  # the default is a download
        if "aux_logits" in self.takes:
            options["aux_logits"] = with_aux
        left_open = "init_weights" in self.takes and self.takes["init_weights"].default is None
        if left_open:
            options["init_weights"] = False  # it would warn, and draw for minutes
        if classes is not None:
            if "num_classes" not in self.takes:
                raise SourceError(
                    self.label,
                    f"{classes} classes were asked for",
                    "this network has no classes",
                    "choose another network",
                )
            options["num_classes"] = classes
        return self.builder(**options)

    def shapes(self, classes: int | None, with_aux: bool) -> dict[str, torch.Size]:
        """Return the shapes of such a network's tensors, without making their values if possible."""
        try:
            with torch.device("meta"):
                module = self.build(classes, with_aux)
        except (NotImplementedError, RuntimeError):  # some compute their widths with tensors
            module = self.build(classes, with_aux)
        return {key: tensor.shape for key, tensor in own(module).items()}

    @cached_property
    def takes(self) -> Mapping[str, Parameter]:
        """Return what the builder takes, by itself or by the class that it builds and that one's bases."""
        plain = unwrap(self.builder)
        built = get_type_hints(plain).get("return")
        bases = built.__mro__ if isinstance(built, type) else ()
        found = dict(signature(plain).parameters)
        for base in bases[: bases.index(nn.Module)] if nn.Module in bases else ():
            found = {**_init_parameters(base), **found}
        return found


def with_weights(recipe: ModelSpec, state: State, classes: int | None) -> tuple[nn.Module, Notes]:
    """Build the network that the weights are from, or that network with another class count.

    Raises `SourceError` where they are of another architecture.
    """
    module, channels = _whole(recipe, state)
    _require_fit(recipe.label, module, state)
    notes: Notes = ()
    if classes is not None:
        module = recipe.build(classes)
        if channels is not None:
            notes = with_channels(module, channels, recipe.label, recipe.side)
    there, fresh = own(module), _unfit(own(module), state)
    module.load_state_dict({k: state[k] for k in there.keys() & state.keys() - fresh}, strict=False)
    return module, (*notes, *_notes(there, state, fresh))


def own(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the module's tensors by key."""
    return dict(module.state_dict())


def _init_parameters(kind: type) -> Mapping[str, Parameter]:
    return signature(vars(kind).get("__init__", object.__init__)).parameters


def _whole(recipe: ModelSpec, state: State) -> tuple[nn.Module, int | None]:
    """Build the network with the second heads, the classes and the input channels of the weights.

    The channels are returned where they are not the usual ones.
    """
    module = recipe.build(None)
    with_aux = "aux_logits" in recipe.takes and bool(state.keys() - own(module))
    heads = {key for key in _unfit(own(module), state) if _length(own(module), state, key)}
    if with_aux or heads:
        module = recipe.build(_classes(recipe, state, with_aux, heads), with_aux)
    kernels = {state[key].shape[1] for key in _unfit(own(module), state) if state[key].ndim > 3}
    channels = kernels.pop() if len(kernels) == 1 else None
    if channels:
        with_channels(module, channels, recipe.label, recipe.side)
    return module, channels


def _length(here: State, state: State, key: str) -> bool:
    """Tell whether two tensors differ in length alone, as those of two class counts do."""
    return state[key].ndim > 0 and state[key].shape[1:] == here[key].shape[1:]


def _classes(recipe: ModelSpec, state: State, with_aux: bool, heads: set[str]) -> int | None:
    """Return the class count that makes the heads as long as the weights say.

    Detection networks have several outputs per class, so their length is measured for two counts.
    """
    if not heads or "num_classes" not in recipe.takes:
        return None
    low, high = (recipe.shapes(count, with_aux) for count in (2, 3))
    for key in sorted(heads & low.keys()):
        if each := high[key][0] - low[key][0]:
            count, rest = divmod(state[key].shape[0] - low[key][0], each)
            return count + 2 if count > -2 and not rest else None
    return None


def _unfit(here: State, state: State) -> set[str]:
    """Return the keys whose shapes differ."""
    return {key for key in here.keys() & state.keys() if here[key].shape != state[key].shape}


def _require_fit(label: str, module: nn.Module, state: State) -> None:
    here = own(module)
    # Files from before torch 0.4.1 lack the integer counter, which nothing reads in evaluation.
    missing = {k for k in here.keys() - state.keys() if here[k].is_floating_point()}
    wrong = [*sorted(_unfit(here, state)), *sorted(missing), *sorted(state.keys() - here.keys())]
    if wrong:
        key = wrong[0]
        given, needed = (
            f"has {tuple(x[key].shape)}" if key in x else "lacks it" for x in (state, here)
        )
        raise SourceError(
            f"{label}, '{key}'",
            f"the file of weights {given}",
            f"the network {needed}",
            "check which network the weights are from",
        )


def _notes(here: State, state: State, other: set[str]) -> list[str]:
    notes = []
    if other:
        notes.append(f"freshly initialised for another class count: {', '.join(sorted(other))}")
    if extra := sorted(state.keys() - here.keys()):
        notes.append(f"in the weights but not in the network: {', '.join(extra)}")
    return notes
