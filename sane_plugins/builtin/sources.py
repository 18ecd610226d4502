"""Networks in and out: modules, state dicts, files of tensors, and functions that build networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl
from sane_plugins.architectures import SMALL_CNN
from sane_plugins.errors import SourceError

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.weights import WeightGraph

_CLASS_ARGUMENTS = ("classes", "num_classes", "n_classes")


class Sources:
    """Read, build and write what the package itself knows."""

    @hookimpl(trylast=True)
    def sane_open(self, source: Any) -> WeightGraph | None:
        """Read a graph as it is, a module, a state dict, a file of tensors, or what a function builds."""
        if isinstance(source, str | Path) and source != SMALL_CNN:
            from sane_plugins.formats import open_file

            graph = open_file(source)
            if graph is not None or not _is_factory(source):
                return graph
        found = _open_object(source)
        if found is not None or not isinstance(source, str):
            return found
        from sane_plugins.weights import from_module

        module = self.sane_build(source, None)
        return from_module(module, source) if module is not None else None

    @hookimpl(trylast=True)
    def sane_build(self, source: Any, classes: int | None) -> nn.Module | None:
        """Build `small-cnn` for grey images, a copy of a module, or what `package.module:function` makes."""
        from torch import nn

        if isinstance(source, nn.Module):
            return deepcopy(source)
        if isinstance(source, str) and source == SMALL_CNN:
            from sane_plugins.architectures import small_cnn

            return small_cnn(1, classes or 10)
        return _called(str(source), classes) if _is_factory(source) else None

    @hookimpl(trylast=True)
    def sane_save(
        self, graph: WeightGraph, target: Path, metadata: Mapping[str, Any] | None
    ) -> Path | None:
        """Write safetensors in one file or several, torch's own forms as plain state dicts, and `.npz`."""
        from sane_plugins.formats import save_network

        return save_network(graph, target, metadata)

    @hookimpl(trylast=True)
    def sane_check_save(self, graph: WeightGraph, target: Path) -> bool | None:
        """Tell whether such a network would be written."""
        from sane_plugins.formats import check_save

        return check_save(graph, target)


def _open_object(source: Any) -> WeightGraph | None:
    from torch import is_tensor, nn

    from sane_plugins.formats import from_state_dict
    from sane_plugins.weights import WeightGraph, from_module

    if isinstance(source, WeightGraph):
        return source
    if isinstance(source, nn.Module):
        return from_module(source)
    if isinstance(source, Mapping) and all(is_tensor(value) for value in source.values()):
        return from_state_dict(source, "state dict")
    return None


def _is_factory(source: Any) -> bool:
    """Tell whether a source looks like `package.module:function`, and names a package that exists."""
    if not isinstance(source, str):
        return False
    module, colon, function = source.partition(":")
    names = [*module.split("."), function]
    return bool(colon) and all(name.isidentifier() for name in names) and module != "torchvision"


def _called(source: str, classes: int | None) -> nn.Module:
    """Call the function, with the class count where it takes one."""
    from torch import nn

    function = _imported(source)
    try:
        parameters = inspect.signature(function).parameters
        taken = [name for name in _CLASS_ARGUMENTS if name in parameters]
        given = {taken[0]: classes} if taken and classes is not None else {}
        module = function(**given)
    except Exception as error:  # the user's own code, which may raise anything
        raise SourceError(
            source,
            f"it raises {type(error).__name__}: {error}",
            "it must work without arguments, or with the number of classes",
            "name a function that needs no more",
        ) from error
    if not isinstance(module, nn.Module):
        raise SourceError(
            source,
            f"it returns {type(module).__name__}",
            "a torch.nn.Module is needed",
            "name the function that builds the network",
        )
    return module


def _imported(source: str) -> Callable[..., Any]:
    module, _, function = source.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), function)
    except Exception as error:  # the user's own code, which may raise anything
        raise SourceError(
            source,
            f"it cannot be imported ({type(error).__name__}: {error})",
            "package.module:function must exist",
            "check the name, and that its folder is on PYTHONPATH or the current one",
        ) from error
    return found
