"""Write the tables of docs that the code knows better: options of commands, and names that it offers.

    python tools/release/reference_pages.py [--check]

In every page of docs, what stands between `<!-- generated: NAME -->` and `<!-- end -->` is replaced by the table
of that name; all around it is written by hand. `--check` writes nothing and exits with 1 where a page is out of date.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from signal import SIGINT
from types import FunctionType
from typing import Any

import click

import sane_plugins as package
from sane_plugins import errors, hooks
from sane_plugins.architectures.families import ARCHITECTURES
from sane_plugins.builtin import portfolio
from sane_plugins.cli.hub.register import register
from sane_plugins.cli.initialize import main as sane_init
from sane_plugins.cli.main import main as sane_plugins
from sane_plugins.cli.verify import verify
from sane_plugins.formats import ARRAYS, CHECKPOINTS, EXPORTED, INDEX, SCRIPTS
from sane_plugins.pretraining.presets import PRESETS
from sane_plugins.prompts import read_card
from sane_plugins.zoo_training.hyperparameters import HyperparameterRanges

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_COUNTS = ("channels_in", "classes")  # arguments that follow from the data
_BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_EVERYWHERE = ("as_json", "debug", "help")  # options that every command has
_DRAWN = ("channels_in", "classes", "act", "dropout", "size")  # arguments that zoo training gives
_NUMBERS = {"INT": "N", "FLOAT": "X"}
_SHAPE = "SANEConfig"  # beside the classes whose names end in Options


def filled(text: str, where: str = "the text") -> str:
    """Return a page with every generated table as the code has it now; `KeyError` for one of no known name."""
    known = tables()

    def table(found: re.Match[str]) -> str:
        if found[2] not in known:
            raise KeyError(f"{where}: no table is called '{found[2]}', but {', '.join(known)} are")
        return f"{found[1]}\n{known[found[2]]()}\n\n{found[3]}"

    return _BLOCK.sub(table, text)


def tables() -> dict[str, Callable[[], str]]:
    """Return what makes each table, by its name."""
    by_command = {name: lambda c=command: options(c) for name, command in commands()}
    return {
        **by_command,
        "every command": common,
        "commands": overview,
        "exit codes": exit_codes,
        "errors": error_classes,
        "encoders": lambda: offered("encoder", portfolio.Portfolio().sane_encoders()),
        "samplers": lambda: offered("sampler", portfolio.Portfolio().sane_samplers()),
        "transfers": lambda: offered("transfer", portfolio.Portfolio().sane_transfers()),
        "property heads": heads,
        "hooks": hook_table,
        "photo networks": photo_networks,
        "suffixes": suffixes,
        "architectures": architectures,
        "hyper-parameters": hyperparameters,
        "presets": presets,
        "options in Python": option_classes,
    }


# Commands


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command by the words that call it."""
    yield "sane-init", sane_init
    yield "sane-init verify", verify
    yield from _below("sane-plugins", sane_plugins)
    yield "hf-sane register", register


def _below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    for word, each in sorted(command.commands.items()):
        yield from _below(f"{name} {word}", each)


def options(command: click.Command) -> str:
    """Return how a command is called, and its options, save those that every command has."""
    name = next(name for name, each in commands() if each is command)
    usage = " ".join((name, *command.collect_usage_pieces(click.Context(command))))
    rows = [
        (_spelt(x), _default(command, x), _meaning(x))
        for x in command.params
        if isinstance(x, click.Option) and x.name not in (*_EVERYWHERE, "version")
    ]
    table = _table(("option", "default", "meaning"), rows) if rows else ""
    return f"```text\n{usage}\n```\n\n{table}".rstrip()


def common() -> str:
    """Return the options that every command has."""
    context = click.Context(verify, info_name="sane-init verify")
    rows = [(_spelt(x), _meaning(x)) for x in verify.get_params(context) if x.name in _EVERYWHERE]
    return _table(("option", "meaning"), rows)


def overview() -> str:
    """Return every command with the first sentence of its help."""
    rows = [(f"[`{n}`](#{n.replace(' ', '-')})", _first(c.help or "")) for n, c in commands()]
    return _table(("command", "what it does"), rows)


def _spelt(parameter: click.Parameter) -> str:
    *short, last = [*parameter.opts, *parameter.secondary_opts]
    return ", ".join(f"`{name}`" for name in (*short, f"{last} {_value(parameter)}".strip()))


def _value(parameter: click.Parameter) -> str:
    """Return what stands for the value of an option; empty for a flag."""
    if getattr(parameter, "is_flag", False):
        return ""
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return "\\|".join(parameter.type.choices)
    named = parameter.type.name.upper()
    for prefix, letter in _NUMBERS.items():
        named = letter if named.startswith(prefix) else named
    return named


def _default(command: click.Command, parameter: click.Parameter) -> str:
    """Return a default as users write it; that of a preset where it decides."""
    if parameter.required:
        return "required"
    told = re.search(r"\[default: ([^\]]*)\]", str(getattr(parameter, "help", None) or ""))
    if told:
        return told[1]
    value = parameter.get_default(click.Context(command))
    if value is None or type(value).__name__ == "Sentinel":
        value = _of_preset(parameter) if command.name == "pretrain" else None
    if value in (None, "", ()) or (value is False and getattr(parameter, "is_flag", False)):
        return ""
    if value is True:
        return f"`{parameter.opts[0]}`"
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(f"`{each:g}`" if isinstance(each, float) else f"`{each}`" for each in values)


def _of_preset(parameter: click.Parameter) -> Any:
    if parameter.name == "precision":
        return "bf16"
    config, training = PRESETS["default"](())
    return getattr(training, str(parameter.name), getattr(config, str(parameter.name), None))


def _meaning(parameter: click.Parameter) -> str:
    text = str(getattr(parameter, "help", None) or "")
    text = re.sub(r"\s*\[default: [^\]]*\]", "", text)
    return _cell(text.rstrip("."))


# Names


def offered(kind: str, named: Mapping[str, Any]) -> str:
    """Return what plugins of ours offer by name, with their arguments and the first line of their docstrings."""
    rows = []
    for name, each in named.items():
        arguments = {f.name: getattr(each, f.name) for f in _fields(each) if f.repr}
        told = ", ".join(f"`{key}={value!r}`" for key, value in arguments.items())
        rows.append((f"`{name}`", told, _first(type(each).__doc__ or "")))
    return _table((kind, "arguments", "what it does"), rows)


def heads() -> str:
    """Return the property heads that ship: what each predicts, from which features."""
    rows = []
    for name, head in sorted(portfolio.Portfolio().sane_property_heads().items()):
        classes = getattr(head, "classes", None)
        what = (
            ", ".join(f"`{each}`" for each in classes)
            if classes
            else f"number ({getattr(head, 'unit', '')})"
        )
        rows.append((f"`{name}`", what.replace(" ()", ""), f"`{head.features}`"))
    return _table(("property", "values", "features"), rows)


def hook_table() -> str:
    """Return every hook: arguments, what it returns, and whether the first answer counts or all."""
    rows = []
    for name, function in vars(hooks).items():
        if name.startswith("sane_"):
            signature = inspect.signature(function)
            arguments = ", ".join(
                f"`{x.name}: {x.annotation}`" for x in signature.parameters.values()
            )
            is_first = function.sane_plugins_spec["firstresult"]
            returned = f"`{signature.return_annotation}`"
            rows.append(
                (f"`{name}`", _cell(arguments), _cell(returned), "first" if is_first else "all")
            )
    return _table(("hook", "arguments", "returns", "answers that count"), rows)


def photo_networks() -> str:
    """Return the compact networks that ship, and how well each was trained, by their cards."""
    rows = []
    for name, offer in portfolio.Portfolio().sane_prompts().items():
        card = read_card(offer.load())
        assert card is not None
        told = card.record
        architecture = ", ".join(
            f"{key}={value}" for key, value in card.factory.items() if key not in _COUNTS
        )
        rows.append(
            (
                f"`{name}`",
                f"`{architecture.removeprefix('name=')}`",
                f"{told['values']:,}",
                f"{told['epochs']} of {told['plans'][-1]['epochs']}",
                f"{told['accuracy']:.3f}",
            )
        )
    return _table(("name", "architecture", "values", "epochs", "held-out accuracy"), rows)


def suffixes() -> str:
    """Return what files are told by their suffix, and whether they are read and written."""
    told = {
        ".safetensors": "safetensors",
        INDEX: "safetensors in several files",
        **dict.fromkeys(CHECKPOINTS, "torch checkpoint"),
        **dict.fromkeys(SCRIPTS, "TorchScript"),
        **dict.fromkeys(EXPORTED, "torch.export"),
        **dict.fromkeys(ARRAYS, "NumPy"),
        ".onnx": "ONNX (extra `onnx`)",
        ".gguf": "GGUF (extra `gguf`)",
    }
    unwritten = {*SCRIPTS, *EXPORTED, *(x for x in ARRAYS if x != ".npz")}
    own = {".onnx": "where it was read from ONNX"}
    rows = [
        (f"`{x}`", form, "yes", own.get(x, "no" if x in unwritten else "yes"))
        for x, form in told.items()
    ]
    return _table(("suffix", "form", "read", "written"), rows)


def architectures() -> str:
    """Return the architectures that zoos can be trained of, with arguments that are not drawn."""
    rows = []
    for name, function in ARCHITECTURES.items():
        taken = inspect.signature(function).parameters.values()
        further = ", ".join(f"`{x.name}={x.default}`" for x in taken if x.name not in _DRAWN)
        rows.append((f"`{name}`", further, _first(function.__doc__ or "")))
    return _table(
        ("`--architecture`", "further arguments (`--set NAME=VALUE`)", "what it is"), rows
    )


def hyperparameters() -> str:
    """Return what the hyper-parameters of a zoo's networks are drawn from."""
    drawn = HyperparameterRanges()
    rows = [(f"`{x.name}`", _range(x.name, getattr(drawn, x.name))) for x in fields(drawn)]
    return _table(("range", "values"), rows)


def _range(name: str, values: Sequence[object]) -> str:
    if name.endswith("_lr"):
        low, high = values
        return f"10^{low} to 10^{high}, even in the exponent"
    return ", ".join(f"`{value}`" for value in values)


def presets() -> str:
    """Return where the presets of pretraining differ. The paper's steps follow from the zoos, so they are left out."""
    (shape, training), (own_shape, own_training) = (PRESETS[x](()) for x in ("default", "paper"))
    rows = [
        (f"`{x.name}`", f"`{getattr(a, x.name)!r}`", f"`{getattr(b, x.name)!r}`")
        for a, b in ((shape, own_shape), (training, own_training))
        for x in fields(a)
        if getattr(a, x.name) != getattr(b, x.name) and x.name != "steps"
    ]
    return _table(("field", "`default`", "`paper`"), rows)


def option_classes() -> str:
    """Return every class of options: what it is for, and its fields with their types and defaults."""
    return "\n\n".join(_option_class(each) for each in _found_options())


def _found_options() -> list[Any]:
    """Return the dataclasses of options that any module of the package defines, by name."""
    found: dict[str, Any] = {}
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for name, each in vars(importlib.import_module(module.name)).items():
            if (name.endswith("Options") or name == _SHAPE) and is_dataclass(each):
                found[name] = each
    return [found[name] for name in sorted(found)]


def _option_class(each: Any) -> str:
    rows = [(f"`{x.name}`", _cell(f"`{x.type}`"), _field_default(x)) for x in fields(each)]
    table = _table(("field", "type", "default"), rows)
    return f"### {each.__name__}\n\n{inspect.getdoc(each)}\n\n{table}"


def error_classes() -> str:
    """Return the classes of errors with their exit codes."""
    found = [
        x for x in vars(errors).values() if inspect.isclass(x) and issubclass(x, errors.SaneError)
    ]
    rows = [(f"`{x.__name__}`", x.exit_code, _first(x.__doc__ or "")) for x in found]
    return _table(("error", "exit code", "when"), rows)


def exit_codes() -> str:
    """Return the exit codes of the commands, with the errors that end in them."""
    found = [x for x in vars(errors).values() if inspect.isclass(x) and x is not errors.SaneError]
    by_code: dict[int, list[str]] = {}
    for each in found:
        if issubclass(each, errors.SaneError):
            by_code.setdefault(each.exit_code, []).append(f"`{each.__name__}`")
    rows = [
        (0, "done"),
        *((code, f"{', '.join(by_code[code])}") for code in sorted(by_code)),
        (128 + SIGINT, "interrupted"),
    ]
    return _table(("exit code", "meaning"), rows)


def _fields(each: Any) -> Sequence[Field[Any]]:
    return fields(each) if hasattr(each, "__dataclass_fields__") else ()


def _field_default(x: Field[Any]) -> str:
    if x.default is MISSING and x.default_factory is MISSING:
        return "required"
    made = x.default if x.default_factory is MISSING else x.default_factory()
    if isinstance(made, FunctionType):
        return f"`{made.__name__}`"
    return f"`{type(made).__name__}()`" if hasattr(made, "__dataclass_fields__") else f"`{made!r}`"


# Markdown


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return text as it stands in a cell: a bar would end it."""
    return " ".join(text.split()).replace("\\|", "|").replace("|", "\\|")


def _first(text: str) -> str:
    """Return the first sentence of a docstring or help, without its full stop."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return _cell(re.split(r"\. (?=[A-Z`])", paragraph)[0].rstrip("."))


def pages() -> list[Path]:
    """Return the pages that have a generated table."""
    return [path for path in sorted(DOCS.rglob("*.md")) if _BLOCK.search(path.read_text())]


def main() -> None:
    """Write the pages, or with --check tell which are out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = 0
    for path in pages():
        text = path.read_text()
        made = filled(text, str(path))
        if made != text:
            stale += 1
            print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'written'}")
            if not check:
                path.write_text(made)
    sys.exit(int(check and stale > 0))


if __name__ == "__main__":
    main()
