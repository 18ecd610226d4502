"""The index of a zoo: JSON Lines with a header, then one record per entry.

Version 1 (one JSON object in `index.json`, next to one `weights.safetensors`) can be read too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from sane_plugins.arguments import ArgumentTypeError, require_field_types, require_type
from sane_plugins.atomic_files import write_whole
from sane_plugins.display import ShortRepr
from sane_plugins.errors import ZooError, first_line
from sane_plugins.formats import exists

VERSION = 2
NAME = "index.jsonl"
OLD_NAME = "index.json"
OLD_WEIGHTS = "weights.safetensors"
Property = float | str | bool

_MAX_BYTES = 2**28  # of an index

_OPTIONAL_FIELDS = ("digest", "source", "container", "form")
_KEY_FIELDS = ("network", "checkpoint")  # parts of the names of tensors
_TEXT_FIELDS = (*_KEY_FIELDS, "file", *_OPTIONAL_FIELDS)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One checkpoint of one network: how to build it, and its measured properties.

    `factory` is empty if unknown. The zoo fills in the rest: `digest` of the weights; `source` and
    `container`, the file they were added from and its format; `file`, which holds the tensors; `form`, the
    name of the entry's `Form`.
    """

    network: str
    checkpoint: str
    factory: Mapping[str, Any] = field(hash=False)
    properties: Mapping[str, Property] = field(hash=False)
    digest: str = ""
    source: str = ""
    container: str = ""
    file: str = ""
    form: str = ""

    @property
    def key(self) -> str:
        """Return the prefix of the entry's tensor names."""
        return f"{self.network}/{self.checkpoint}"


@dataclass(frozen=True, kw_only=True)
class Form:
    """Tensor names, dtypes and shapes shared by networks of one architecture, in order.

    `ties` maps tied names to the tensor they share; `axes` gives the output axis of tensors where it is not
    the first.
    """

    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    ties: Mapping[str, str] = field(default_factory=dict, hash=False)
    axes: Mapping[str, int] = field(default_factory=dict, hash=False)

    @classmethod
    def of(
        cls, state: Mapping[str, torch.Tensor], ties: Mapping[str, str], axes: Mapping[str, int]
    ) -> Form:
        """Build the form of a state dict."""
        tensors = (
            (k, str(v.dtype).removeprefix("torch."), tuple(v.shape)) for k, v in state.items()
        )
        return cls(tensors=tuple(tensors), ties=dict(ties), axes=dict(axes))

    @property
    def name(self) -> str:
        """Return a name derived from the content, by which entries refer to this form."""
        return sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    @property
    def parameters(self) -> int:
        """Return the number of floating-point values."""
        floats = (shape for _, kind, shape in self.tensors if "float" in kind)
        return sum(torch.Size(shape).numel() for shape in floats)


@dataclass(frozen=True, eq=False, repr=False)
class ZooIndex(ShortRepr):
    """Contents of a zoo's index."""

    name: str
    entries: tuple[Entry, ...]
    forms: Mapping[str, Form]


def is_zoo(folder: Path) -> bool:
    """Return whether a folder holds a zoo of any version."""
    return any((folder / name).is_file() for name in (NAME, OLD_NAME))


def read_index(folder: Path) -> ZooIndex:
    """Read a zoo's index. Raises `ZooError` if it is missing, damaged or of a newer version."""
    path = folder / NAME
    is_new = exists(path) and path.is_file()
    path = path if is_new else folder / OLD_NAME
    text = read_text(path)
    try:
        return _parse(text) if is_new else _parse_version1(text)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ZooError(
            path,
            f"this is no whole index ({_reason(error)})",
            f"version 1 or {VERSION} is needed",
            "make the zoo again with 'sane-plugins zoo import' or 'zoo add'",
        ) from error


def write_index(folder: Path, index: ZooIndex) -> None:
    """Write a zoo's index atomically, and remove an index of version 1."""
    used = {entry.form for entry in index.entries}
    forms = {name: asdict(form) for name, form in index.forms.items() if name in used}
    header = {"version": VERSION, "name": index.name, "forms": forms}
    lines = [json.dumps(header), *(json.dumps(_to_record(entry)) for entry in index.entries)]
    text = "\n".join(lines) + "\n"
    # A link in somebody else's folder leads where its maker wants.
    write_whole(
        folder / NAME,
        lambda partial: partial.write_text(text, encoding="utf-8"),
        follow_links=False,
    )
    (folder / OLD_NAME).unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Read an index as text. Raises `ZooError` if it is missing or unreadable."""
    if not (exists(path) and path.is_file()):
        raise ZooError(
            path,
            "there is no such file",
            "a zoo's index is needed",
            "check the path; 'sane-plugins zoo import' and 'zoo add' make a zoo folder",
        )
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ZooError(
                path,
                f"it has {size:,} bytes",
                f"an index has at most {_MAX_BYTES:,}",
                "split the zoo",
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(
            path,
            f"it cannot be read as text ({type(error).__name__})",
            "a zoo's index is needed",
            "check the path; 'sane-plugins zoo import' makes one",
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ArgumentTypeError):
        return f"{error.place}: {error.found}, but {error.needed}"
    return f"{error} is missing" if isinstance(error, KeyError) else first_line(error)


def _parse(text: str) -> ZooIndex:
    lines = text.splitlines()
    header = json.loads(lines[0]) if lines else {}
    if header["version"] != VERSION:
        raise ValueError(f"version {header['version']}")
    forms = {name: _parse_form(record) for name, record in header["forms"].items()}
    entries = tuple(check_entry(Entry(**json.loads(line))) for line in lines[1:])
    if missing := {entry.form for entry in entries} - {*forms, ""}:
        raise ValueError(f"the form {missing.pop()} is missing")
    return ZooIndex(_parse_name(header), entries, forms)


def _parse_version1(text: str) -> ZooIndex:
    index = json.loads(text)
    if index["version"] != 1:
        raise ValueError(f"version {index['version']}")
    entries = (Entry(**{**record, "file": OLD_WEIGHTS}) for record in index["entries"])
    return ZooIndex(_parse_name(index), tuple(map(check_entry, entries)), {})


def _parse_name(header: Mapping[str, Any]) -> str:
    name = str(header["name"])
    name.encode()  # raises for lone surrogates
    return name


def check_entry(entry: Entry) -> Entry:
    """Return the entry after checking its types, and that its file lies in the zoo's own folder."""
    for name in _TEXT_FIELDS:
        if not isinstance(getattr(entry, name), str):
            raise ValueError(f"the {name} of an entry is no text")
    for name in _KEY_FIELDS:
        getattr(entry, name).encode()  # raises for what no file of tensors can name
    if not (isinstance(entry.factory, dict) and isinstance(entry.properties, dict)):
        raise ValueError(f"the factory or properties of {entry.key!a} have no names")
    for name, value in entry.properties.items():
        if not isinstance(value, float | int | str):
            raise ValueError(f"the property {name!a} of {entry.key!a} is no number or text")
    if not entry.file or Path(entry.file).name != entry.file:
        raise ValueError(f"the file {entry.file!a} is no plain name")
    return entry


def _parse_form(record: Mapping[str, Any]) -> Form:
    """Return a form whose ties and axes are of tensors that it has."""
    tensors = tuple((str(k), str(kind), tuple(shape)) for k, kind, shape in record["tensors"])
    form = Form(tensors=tensors, ties=record["ties"], axes=record["axes"])
    require_field_types(form)
    ranks = {name: len(shape) for name, _, shape in tensors}
    for size in (size for _, _, shape in tensors for size in shape):
        require_type("shape", size, int)
        if not 0 <= size < 2**63:
            raise ValueError(f"a shape has the size {size}")
    if ranks.keys() & form.ties.keys():
        raise ValueError("a form ties a name that has a tensor")
    for name in (*ranks, *form.ties):
        name.encode()
    for name in (*form.ties.values(), *form.axes):
        if name not in ranks:
            raise ValueError(f"{ascii(name)[:80]} is no tensor of the form")
    for name, axis in form.axes.items():
        require_type("axis", axis, int)
        if not -ranks[name] <= axis < ranks[name]:
            raise ValueError(f"{ascii(name)[:80]} has no axis {axis}")
    return form


def _to_record(entry: Entry) -> dict[str, Any]:
    return {k: v for k, v in asdict(entry).items() if v != "" or k not in _OPTIONAL_FIELDS}
