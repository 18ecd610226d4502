"""Which functions a file may name: what a file says is a stranger's word, what a user typed is the user's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sane_plugins.errors import SourceError
from sane_plugins.formats import HUB

_MAX_SHOWN = 200  # characters of a call


@dataclass(frozen=True)
class Trust:
    """The functions `package.module:function` that may be imported and called, beside our own architectures.

    `names` are those that the user named; `everything` allows all. Modules that are not installed are
    looked for in `folder`, where one is given, while such a function is imported and not afterwards.
    """

    names: frozenset[str] = frozenset()
    everything: bool = False
    folder: Path | None = None

    def allows(self, name: str) -> bool:
        """Return whether the function of that name may be called."""
        return self.everything or name in self.names


NO_TRUST = Trust()
FULL_TRUST = Trust(everything=True)


def describe_call(factory: Mapping[str, Any]) -> str:
    """Return a factory as the call that it asks for, cut after some 200 characters."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in factory.items() if key != "name")
    text = f"{factory.get('name')}({arguments})"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def distrusted(factory: Mapping[str, Any], place: object) -> SourceError:
    """Return the error for a file that names a function which the user did not."""
    name = str(factory.get("name"))
    # A way out is copied into a shell, so it holds no name that cannot be a function's.
    return SourceError(
        place,
        f"it asks to call {describe_call(factory)}",
        "from files only our own architectures and torchvision's are built, and code that you name yourself",
        f"if you know it, add --factory {name}, or --trust for all that the file names"
        if is_function_name(name) and len(name) <= _MAX_SHOWN
        else "that is no function: add it again with --factory package.module:function",
    )


def is_function_name(source: Any) -> bool:
    """Return whether a source looks like `package.module:function`; `hf:name` is a name of the hub."""
    module, colon, function = source.partition(":") if isinstance(source, str) else ("", "", "")
    is_named = bool(colon) and f"{module}:" != HUB
    return is_named and all(x.isidentifier() for x in (*module.split("."), function))
