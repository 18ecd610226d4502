"""Build a library's model to match a state dict, optionally with another class count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import Parameter, signature, unwrap
from typing import Any, get_type_hints

import torch
from torch import nn

from sane_plugins.architectures.image_size import SIZE_ARGUMENTS
from sane_plugins.architectures.input_channels import set_input_channels
from sane_plugins.errors import SourceError, UsageError, first_line

State = Mapping[str, torch.Tensor]
Notes = tuple[str, ...]
_AUXILIARY = ("aux_logits", "aux_loss")  # arguments that ask for heads which help training


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A library's builder of a model and its arguments; `label` names it in errors, `image_size`: pixels.

    A network with a headless form is built without its classifier for 0 classes.
    """

    builder: Callable[..., nn.Module]
    label: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    has_headless_form: bool = False

    def at_size(self, size: int, source: str) -> ModelSpec:
        """Return the spec for images of another size in pixels. Raises `UsageError` where it takes any."""
        argument = next((name for name in SIZE_ARGUMENTS if name in self.parameters), None)
        if argument is None:
            raise _takes_any_size(source, size)
        return replace(self, arguments={**self.arguments, argument: size}, image_size=size)

    def options(self, classes: int | None, with_aux: bool = False) -> dict[str, Any]:
        """Return what the builder is called with: no weights, no auxiliary heads that only help training."""
        options: dict[str, Any] = {"weights": None, **self.arguments}
        if "weights_backbone" in self.parameters:
            options["weights_backbone"] = None  # the default is a download
        options |= {name: with_aux for name in _AUXILIARY if name in self.parameters}
        init_weights = self.parameters.get("init_weights")
        if init_weights is not None and init_weights.default is None:
            options["init_weights"] = False  # it would warn, and draw for minutes
        if classes is not None:
            if "num_classes" not in self.parameters:
                raise SourceError(
                    self.label,
                    f"{classes} classes were asked for",
                    "this network has no classes",
                    "choose another network",
                )
            options["num_classes"] = classes
        return options

    def build(self, classes: int | None, with_aux: bool = False) -> nn.Module:
        """Build without weights, and without the auxiliary heads that only help training."""
        options = self.options(classes, with_aux)
        try:
            return self.builder(**options)
        except (ValueError, RuntimeError, TypeError, AssertionError) as error:
            if not options.keys() & SIZE_ARGUMENTS:
                raise
            if isinstance(error, TypeError):  # of a library that hands it on to another function
                raise _takes_any_size(self.label, self.image_size) from error
            raise SourceError(
                self.label,
                f"it cannot be built for images of {self.image_size} pixels ({first_line(error)})",
                "a size that its patches divide is needed",
                "choose another size=N, or leave it out",
            ) from error

    def shapes(self, classes: int | None, with_aux: bool) -> dict[str, torch.Size]:
        """Return the shapes of such a model's tensors, built on the meta device where that is possible."""
        try:
            with torch.device("meta"):
                module = self.build(classes, with_aux)
        except (NotImplementedError, RuntimeError):  # some compute their widths with tensors
            module = self.build(classes, with_aux)
        return {key: tensor.shape for key, tensor in module.state_dict().items()}

    @property
    def has_aux(self) -> bool:
        """Return whether it can be built with auxiliary heads."""
        return any(name in self.parameters for name in _AUXILIARY)

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Return the parameters of the builder and, for its **kwargs, of the class that it returns."""
        function = unwrap(self.builder)
        returned = get_type_hints(function).get("return")
        bases = returned.__mro__ if isinstance(returned, type) else ()
        parameters = dict(signature(function).parameters)
        for base in bases[: bases.index(nn.Module)] if nn.Module in bases else ():
            parameters = {**_init_parameters(base), **parameters}
        return parameters


def _takes_any_size(source: str, size: int | None) -> UsageError:
    return UsageError(
        source,
        f"size={size} follows the name",
        "only a network that is built for one image size takes it",
        "leave it out, and resize the images with --size",
    )


def build_with_weights(
    spec: ModelSpec, state: State, classes: int | None
) -> tuple[nn.Module, Notes]:
    """Build the model that a state dict belongs to, or that model with another class count.

    Raises `SourceError` where the weights are of another architecture.
    """
    module, channels = _build_for(spec, state)
    _require_match(spec.label, module, state)
    notes: Notes = ()
    if classes is not None:
        module = spec.build(classes)
        if channels is not None:
            notes = set_input_channels(module, channels, spec.label, spec.image_size)
    module_state = module.state_dict()
    mismatched = _mismatched(module_state, state)
    matching = module_state.keys() & state.keys() - mismatched
    module.load_state_dict({key: state[key] for key in matching}, strict=False)
    return module, (*notes, *_notes(module_state, state, mismatched))


def _init_parameters(module_type: type) -> Mapping[str, Parameter]:
    return signature(vars(module_type).get("__init__", object.__init__)).parameters


def _build_for(spec: ModelSpec, state: State) -> tuple[nn.Module, int | None]:
    """Build the model with the auxiliary heads, the classes and the input channels of a state dict.

    The channels are returned only where they differ from the model's default.
    """
    module = spec.build(None)
    module_state = module.state_dict()
    with_aux = spec.has_aux and bool(state.keys() - module_state)
    heads = {
        key
        for key in _mismatched(module_state, state)
        if _differs_in_length(module_state, state, key)
    }
    if with_aux or heads:
        module = spec.build(_class_count(spec, state, with_aux, heads), with_aux)
    kernels = [state[key] for key in _mismatched(module.state_dict(), state) if state[key].ndim > 3]
    counts = {kernel.shape[1] for kernel in kernels}
    channels = counts.pop() if len(counts) == 1 else None
    if channels:
        set_input_channels(module, channels, spec.label, spec.image_size)
    return module, channels


def _differs_in_length(module_state: State, state: State, key: str) -> bool:
    """Return whether two tensors differ in their first axis at most, as heads of two class counts do."""
    return state[key].ndim > 0 and state[key].shape[1:] == module_state[key].shape[1:]


def _class_count(spec: ModelSpec, state: State, with_aux: bool, heads: set[str]) -> int | None:
    """Return the class count for which the heads have the shapes in the state dict.

    Detection networks have several outputs per class, so their length is measured for two counts.
    """
    if not heads or "num_classes" not in spec.parameters:
        return None
    with_two, with_three = (spec.shapes(count, with_aux) for count in (2, 3))
    for key in sorted(heads & with_two.keys()):
        if per_class := with_three[key][0] - with_two[key][0]:
            count, rest = divmod(state[key].shape[0] - with_two[key][0], per_class)
            return count + 2 if count > -2 and not rest else None
    return None


def _mismatched(module_state: State, state: State) -> set[str]:
    """Return the common keys whose shapes differ."""
    return {
        key
        for key in module_state.keys() & state.keys()
        if module_state[key].shape != state[key].shape
    }


def _require_match(label: str, module: nn.Module, state: State) -> None:
    module_state = module.state_dict()
    # Files from before torch 0.4.1 lack the integer counter, which nothing reads in evaluation.
    missing = {k for k in module_state.keys() - state.keys() if module_state[k].is_floating_point()}
    differing = [
        *sorted(_mismatched(module_state, state)),
        *sorted(missing),
        *sorted(state.keys() - module_state.keys()),
    ]
    if differing:
        key = differing[0]
        given, needed = (
            f"has {tuple(x[key].shape)}" if key in x else "lacks it" for x in (state, module_state)
        )
        raise SourceError(
            f"{label}, '{key}'",
            f"the file of weights {given}",
            f"the network {needed}",
            "check which network the weights are from",
        )


def _notes(module_state: State, state: State, mismatched: set[str]) -> list[str]:
    notes = []
    if mismatched:
        notes.append(
            f"freshly initialised for another class count: {', '.join(sorted(mismatched))}"
        )
    if unused := sorted(state.keys() - module_state.keys()):
        notes.append(f"in the weights but not in the network: {', '.join(unused)}")
    return notes
