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

    is_file = isinstance(source, str | Path) and exists(source)
    return SourceError(
        source_name(source),
        "no plugin reads this file" if is_file else "no plugin knows it",
        "a module, a state dict, a file or a name such as torchvision:resnet18 is needed",
        "check the name and its suffix, or see 'sane-plugins list'",
    )


def unknown_network(source: Any) -> SourceError:
    """Return the error for what no plugin builds; of a name alone, with the library or names like it."""
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


def source_name(source: Any) -> str:
    """Name a source in an error without printing its tensors."""
    return str(source) if isinstance(source, str | Path | ModuleType) else type(source).__name__
