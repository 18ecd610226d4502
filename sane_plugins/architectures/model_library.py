"""Models of a library by name, for all plugins.

A name is `PREFIX:NAME[,classes=N][,channels=N][,size=N][,aux=1][@WEIGHTS]`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sane_plugins.errors import SourceError, UsageError, visible

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.architectures.model_spec import ModelSpec, Notes
    from sane_plugins.weights import WeightGraph

_log = logging.getLogger(__name__)
_MOST = {"classes": 100_000, "channels": 10_000, "size": 1_024, "aux": 1}


def open_named(source: Any, prefix: str, builder: str) -> WeightGraph | None:
    """Read the model that `builder.build` makes of a name after `prefix`; None for any other source.

    The module `builder` is imported lazily, as it needs the library. Initial weights are drawn with seed 0,
    so that a name always gives the same network.
    """
    if not _is_named(source, prefix):
        return None
    import torch

    from sane_plugins.runtime import drawing_from
    from sane_plugins.weights import from_module

    with drawing_from(torch.Generator().manual_seed(0)):
        module, notes = import_module(builder).build(source.removeprefix(prefix), None)
    graph = from_module(module, source)
    return replace(graph, notes=(*graph.notes, *notes))


def build_named(source: Any, prefix: str, builder: str, classes: int | None) -> nn.Module | None:
    """Build the model of a name after `prefix`; None for any other source."""
    if not _is_named(source, prefix):
        return None
    module: nn.Module = import_module(builder).build(source.removeprefix(prefix), classes)[0]
    return module


def build_model(
    source: str,
    classes: int | None,
    prefix: str,
    find: Callable[[str], ModelSpec],
    load: Callable[[ModelSpec, str, int | None], tuple[nn.Module, Notes]],
) -> tuple[nn.Module, Notes]:
    """Build the model of `NAME[,classes=N][,channels=N][,size=N][@WEIGHTS]`; return it and notes, logged too.

    `find` returns the spec of a name, `load` builds a spec with the weights after the `@`. Without
    weights the model is initialised with torch's global generator.
    """
    from sane_plugins.architectures.input_channels import set_input_channels

    options, at, weights = source.partition("@")
    name, count, channels, size, with_aux = parse_name(options, classes, prefix + source)
    spec = find(name)
    if size is not None:
        spec = spec.at_size(size, prefix + source)
    if with_aux and not spec.has_aux:
        raise UsageError(
            prefix + source,
            "it has no auxiliary heads",
            "aux=1 may follow the names of networks that have some",
            "leave out aux=1",
        )
    if count == 0 and not spec.has_headless_form:
        raise UsageError(
            prefix + source,
            "no classes were asked for",
            "this network needs at least 1",
            "write classes=10",
        )
    module, notes = load(spec, weights, count) if at else (spec.build(count, with_aux), ())
    if channels is not None:
        notes += set_input_channels(module, channels, prefix + source, spec.image_size)
    for note in notes:
        _log.warning("%s%s: %s", prefix, visible(source), visible(note))
    return module, notes


def parse_name(
    text: str, classes: int | None, source: str
) -> tuple[str, int | None, int | None, int | None, bool]:
    """Parse NAME,classes=N,channels=N,size=N,aux=1: name, class count (else `classes`), channels, size, aux.

    Raises `UsageError` for an unknown option and a number that is none or too large, `SourceError` for
    a class count other than `classes`.
    """
    name, *settings = text.split(",")
    options: dict[str, int] = {}
    for setting in settings:
        option, _, number = setting.partition("=")
        is_number = number.isdecimal() and (int(number[:9]) or option == "classes")
        if option not in _MOST or not is_number:
            raise UsageError(
                source,
                f"'{setting[:80]}' follows the name",
                "classes=N, channels=N or size=N may follow",
                "write NAME,classes=10,channels=1@WEIGHTS",
            )
        if len(number) > 9 or int(number) > _MOST[option]:
            raise UsageError(
                source,
                f"{option}={number[:20]} follows the name",
                f"at most {_MOST[option]:,} {option} are built",
                "check the number",
            )
        options[option] = int(number)
    count = options.get("classes", classes)
    if classes not in (None, count):
        raise SourceError(
            source,
            f"{count} classes follow the name",
            f"{classes} classes are needed here",
            "leave out classes=N",
        )
    return name, count, options.get("channels"), options.get("size"), "aux" in options


def unknown_model(library: str, name: str, names: Iterable[str], needed: str) -> SourceError:
    """Return the error for a name that a library does not have, with the most similar names."""
    close = get_close_matches(name, list(names), n=3)
    return SourceError(
        f"{library}:{name}",
        f"{library} has no such network",
        needed,
        f"did you mean {' or '.join(close)}" if close else "check the name",
    )


def _is_named(source: Any, prefix: str) -> bool:
    return isinstance(source, str) and source.startswith(prefix)
