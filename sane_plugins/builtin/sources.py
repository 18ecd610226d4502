"""Networks in and out: modules, state dicts, files of tensors, and functions that build networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl
from sane_plugins.errors import SourceError

if TYPE_CHECKING:
    from torch import nn

    from sane_plugins.host import Host
    from sane_plugins.weights import WeightGraph


class Sources:
    """Read, build and write the forms and architectures of this package."""

    host: Host

    @hookimpl(trylast=True)
    def sane_open(self, source: Any) -> WeightGraph | None:
        """Read a graph as it is, a module, a state dict, a file of tensors, or what a name builds."""
        if not isinstance(source, str | Path):
            return self._open_object(source)
        from sane_plugins.formats import exists, locate, open_file
        from sane_plugins.weights import from_module

        if (located := locate(source)) is not None:  # its form may be another plugin's
            found = self.host.open(located.path)
            return replace(found, notes=tuple(dict.fromkeys((*found.notes, *located.notes))))
        graph = open_file(source)
        if graph is not None:
            return self.host.recognizer.recognize(graph)
        if exists(source) and Path(source).is_dir():
            raise SourceError(
                source,
                "no network lies in this folder",
                "a folder with the file of one network is needed",
                "name the file itself; what is in a zoo is shown by 'sane-plugins zoo show'",
            ).as_unknown()
        # A file may be called like a function, and is none.
        if isinstance(source, Path) or exists(source):
            return None
        module = self.sane_build(source, None)
        return None if module is None else from_module(module, source)

    @hookimpl(trylast=True)
    def sane_build(self, source: Any, classes: int | None) -> nn.Module | None:
        """Build a family of ours, a copy of a module, what `package.module:function` or a plugin builds."""
        from torch import nn

        from sane_plugins.architectures import build_by_name, family_name, is_function_name
        from sane_plugins.weights import copy_module

        if isinstance(source, nn.Module):
            return copy_module(source)
        if not isinstance(source, str):
            return None
        # What begins with the name of a plugin that was switched off is that plugin's, not a module's.
        is_ours = is_function_name(source) and not self.host.is_off(source.partition(":")[0])
        if family_name(source) or is_ours:
            return build_by_name(source, classes, self.host.trust)
        return self.host.build_published(source, classes)

    @hookimpl(trylast=True)
    def sane_save(
        self, graph: WeightGraph, target: Path, metadata: Mapping[str, Any] | None
    ) -> Path | None:
        """Write safetensors in one file or several, torch's own forms as plain state dicts, and `.npz`."""
        from sane_plugins.formats import save_network

        return save_network(graph, target, metadata)

    @hookimpl(trylast=True)
    def sane_side_files(self, target: Path) -> list[Path] | None:
        """Return the shards of an index and the file of the provenance, where the form needs them."""
        from sane_plugins.formats import side_files

        return side_files(target)

    @hookimpl(trylast=True)
    def sane_check_save(self, graph: WeightGraph, target: Path) -> bool | None:
        """Return whether such a network would be written."""
        from sane_plugins.formats import check_save

        return check_save(graph, target)

    def _open_object(self, source: Any) -> WeightGraph | None:
        from torch import is_tensor, nn

        from sane_plugins.formats import from_state_dict
        from sane_plugins.grafting import PromptNetwork
        from sane_plugins.weights import WeightGraph, from_module, require_valid

        if isinstance(source, WeightGraph):
            return require_valid(source)
        if isinstance(source, PromptNetwork):
            return source.graph
        if isinstance(source, nn.Module):
            return from_module(source)
        if isinstance(source, Mapping) and all(is_tensor(value) for value in source.values()):
            return self.host.recognizer.recognize(from_state_dict(source, "state dict"))
        return None
