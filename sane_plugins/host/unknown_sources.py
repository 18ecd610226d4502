"""What is said of sources and files that no plugin knows."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from sane_plugins.architectures import is_bare_name, without_options
from sane_plugins.errors import SourceError, UsageError


def unknown_source(source: Any) -> SourceError:
    """Return the error for what no plugin reads."""
    from sane_plugins.formats import exists

    if is_python_file(source):
        return _named_by_file(Path(source))
    is_file = isinstance(source, str | Path) and exists(source)
    return SourceError(
        source_name(source),
        "no plugin reads this file" if is_file else "no plugin knows it",
        "a file of a network, a name such as torchvision:resnet18, or package.module:function is needed"
        if isinstance(source, str | Path)
        else "a module, a state dict, a file or a name such as torchvision:resnet18 is needed",
        "check the name and its suffix, or see 'sane-plugins list'",
    )


def unknown_network(source: Any) -> SourceError:
    """Return the error for what no plugin builds; of a name alone, with the library or names like it."""
    if is_python_file(source):
        return _named_by_file(Path(source))
    if is_bare_name(source):
        from sane_plugins.recognition import close_names, library_sources

        name = without_options(source)
        library = next(iter(library_sources(name)), "").partition(":")[0]
        close = close_names(name)
        if library:
            found, needed = "no plugin that is loaded builds it", f"it is a network of {library}"
            way_out = f"run pip install 'sane-plugins[{library}]'"
        else:
            found, needed = "there is no such network", "a name of torchvision or timm is needed"
            way_out = f"did you mean {' or '.join(close)}" if close else "check the name"
        return SourceError(source, found, needed, way_out)
    return SourceError(
        source_name(source),
        "no plugin builds a runnable network from it",
        "a name such as torchvision:resnet18 or package.module:function is needed",
        "check the name, or see 'sane-plugins list'",
    )


def unknown_suffix(target: Path) -> UsageError:
    """Return the error for a file that no plugin writes."""
    return UsageError(
        target,
        f"no plugin writes '{target.suffix}' files",
        "a known suffix is needed",
        "write .safetensors, .pt, or the form that the network came in",
    )


def is_python_file(source: Any) -> bool:
    """Return whether a source is named like a file of Python code."""
    return isinstance(source, str | Path) and Path(source).suffix == ".py"


def _named_by_file(path: Path) -> SourceError:
    """Return the error for a file of Python code in place of a function in it."""
    is_here = path.parent.resolve() == Path.cwd()
    there = "" if is_here else f" and put {path.parent} on PYTHONPATH"
    return SourceError(
        path,
        "it is Python code, which no plugin reads as a network",
        "a function in it that builds one can be named",
        f"write {path.stem}:function with the function's name{there}",
    )


def source_name(source: Any) -> str:
    """Name a source in an error without printing its tensors."""
    return str(source) if isinstance(source, str | Path | ModuleType) else type(source).__name__
