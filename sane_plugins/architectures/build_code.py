"""The Python code that builds a network, for people who use it without this package where they can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sane_plugins.architectures.factory import class_count_argument
from sane_plugins.architectures.model_library import parse_name
from sane_plugins.architectures.model_spec import ModelSpec
from sane_plugins.architectures.names import family_name
from sane_plugins.architectures.torchvision_import import import_torchvision
from sane_plugins.architectures.trust import is_function_name
from sane_plugins.display import literal


@dataclass(frozen=True)
class BuildCode:
    """An import, and the call that builds the network."""

    imports: str
    call: str


def build_code(name: str, classes: int, channels: int | None = None) -> BuildCode:
    """Return the code that builds what a host builds by a name for a number of classes.

    `channels` are those of the images, where a family of ours is built for them. A library's name is built
    by the library, unless it asks for what only we do.
    """
    if family := family_name(name):
        arguments = {} if channels is None else {"channels_in": channels}
        return _call("sane_plugins.architectures", family, {**arguments, "classes": classes})
    prefix, _, rest = name.partition(":")
    if prefix in ("torchvision", "timm") and not ("@" in rest or "channels=" in rest):
        model, count, _, size, with_aux = parse_name(rest, classes, name)
        if prefix == "timm":
            sized = {} if size is None else {"img_size": size}
            return _library_call("timm", "create_model", model, {"num_classes": count, **sized})
        models = import_torchvision().models
        spec = ModelSpec(builder=models.get_model_builder(model), label=name)
        spec = spec if size is None else spec.at_size(size, name)
        return _library_call(
            "torchvision", "models.get_model", model, spec.options(count, with_aux)
        )
    if is_function_name(name):
        module, _, function = name.partition(":")
        argument = class_count_argument(name)
        return _call(module, function, {argument: classes} if argument else {})
    call = f"Host.installed().build({literal(name)}, {classes})"
    return BuildCode("from sane_plugins import Host", call)


def described_code(factory: Mapping[str, Any]) -> BuildCode:
    """Return the code that builds one of our families by its description."""
    arguments = {key: value for key, value in factory.items() if key != "name"}
    return _call("sane_plugins.architectures", str(family_name(factory["name"])), arguments)


def _call(module: str, function: str, arguments: Mapping[str, Any]) -> BuildCode:
    return BuildCode(f"from {module} import {function}", f"{function}({_written(arguments)})")


def _library_call(module: str, function: str, name: str, arguments: Mapping[str, Any]) -> BuildCode:
    call = f"{module}.{function}({literal(name)}, {_written(arguments)})"
    return BuildCode(f"import {module}", call)


def _written(arguments: Mapping[str, Any]) -> str:
    values = {k: literal(x) if isinstance(x, str) else repr(x) for k, x in arguments.items()}
    return ", ".join(f"{key}={value}" for key, value in values.items())
