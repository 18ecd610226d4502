"""Which real files are read: in full, in part, or not, and why. Writes docs/reference/real-files.md.

    python tools/release/formats_table.py --data ../shared/data

Opens every file under onnx/ and checkpoints/ and reads each of its tensors once. Seconds and memory go to
benchmarks/results/formats.json; the page holds only what stays the same from run to run. Exits with 1 where
a file fails otherwise than by one clear sentence, takes longer than 10 s, or holds weights that onnxruntime
runs and that are not read in full.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sane_plugins.errors import PluginError, SaneError
from sane_plugins.host import Host
from sane_plugins.inspection import Survey, percent, survey_network

ROOT = Path(__file__).parents[2]
FOLDERS = ("checkpoints", "onnx")
NO_WEIGHTS = "it holds no weights"
SLOWEST = 10.0  # seconds
PATIENCE = 120.0  # seconds for a process of its own
COLUMNS = ("file", "form", "tensors", "parameters", "read", "how, or why not", "onnxruntime")
INTRO = """# What is read of real files

Made by `python tools/release/formats_table.py --data FOLDER`, where FOLDER holds `onnx/` and `checkpoints/`; do not
edit it. Every file there is opened, and each of its tensors is read once. Parameters are floating-point and
quantised values; integers that count or index are none, nor are numbers that set how an operator works.
onnxruntime *runs* a model on random inputs, *loads* it but not with inputs of a guessed shape, or does
*neither*. `sane-plugins inspect FILE` tells the same of a file of your own.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found of one file. `read` is `in full`, `in part`, `refused` or `FAILED`."""

    file: str
    remark: str
    read: str
    told: str
    form: str = ""
    tensors: int = 0
    parameters: int = 0
    coverage: float = 0.0
    seconds: float = 0.0
    megabytes: float | None = None
    runtime: str = ""


def main() -> None:
    """Read every file, write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reference" / "real-files.md")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "formats.json"
    )
    parser.add_argument("--quick", action="store_true", help="no onnxruntime, no memory")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--execute", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak is not None:
        print(_peak(arguments.peak))
    elif arguments.execute is not None:
        print(_execute(arguments.execute))
    else:
        rows = list(read_all(arguments.data, arguments.quick))
        arguments.page.write_text(page(rows))
        arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        sys.exit(_judge(rows))


def read_all(data: Path, quick: bool) -> Iterator[Row]:
    """Yield a row per file, in the order of their names."""
    remarks, host = _remarks(data / "README.md"), Host.installed()
    _survey(host, "small-cnn")  # what is imported now is no file's time
    for path in sorted(x for folder in FOLDERS for x in (data / folder).rglob("*") if x.is_file()):
        row = _read(host, path, path.relative_to(data).as_posix(), remarks.get(path.name, ""))
        if not quick and path.suffix == ".onnx":
            row = replace(row, runtime=_runtime(path), megabytes=_memory(path))
        yield row


def page(rows: Sequence[Row]) -> str:
    """Return the page."""
    counts = Counter(row.read for row in rows)
    empty = sum(row.told.startswith(NO_WEIGHTS) for row in rows)
    told = ", ".join(f"{count} {read}" for read, count in sorted(counts.items()))
    lines = [INTRO, f"{len(rows)} files: {told} ({empty} of these because they hold no weights)."]
    for folder in FOLDERS:
        lines += ["", f"## {folder}", *_table([x for x in rows if x.file.startswith(f"{folder}/")])]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for row in rows:
        file = f"`{row.file.partition('/')[2]}`" + (f" ({row.remark})" if row.remark else "")
        size = (f"{row.tensors:,}", f"{row.parameters:,}") if row.tensors else ("", "")
        read = f"{row.read}, {percent(row.coverage)}" if row.read == "in part" else row.read
        cells = (file, row.form, *size, read, row.told, row.runtime)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _read(host: Host, path: Path, name: str, remark: str) -> Row:
    start = time.perf_counter()
    row = Row(file=name, remark=remark or _beside(path), read="refused", told="")
    try:
        found = _survey(host, str(path))
    except PluginError as error:
        row = replace(row, read="FAILED", told=_sentence(error, path))
    except SaneError as error:
        row = replace(row, told=_sentence(error, path))
    except Exception as error:  # the point of this benchmark is to find these
        row = replace(row, read="FAILED", told=f"{type(error).__name__}: {error}")
    else:
        row = replace(
            row,
            read="in full" if found.coverage == 1 else "in part",
            told=_told(found),
            form=found.container,
            tensors=len(found.tensors),
            parameters=found.parameters,
            coverage=found.coverage,
        )
    return replace(row, seconds=round(time.perf_counter() - start, 3))


def _survey(host: Host, source: str) -> Survey:
    return survey_network(host.open(source))


def _told(found: Survey) -> str:
    """Say what was converted, and what could not be read."""
    parts = [f"{x.reason} ({percent(x.values / found.total)})" for x in found.converted]
    parts += [f"not read: {x.reason} ({percent(x.values / found.total)})" for x in found.missed]
    return "; ".join(parts)


def _sentence(error: SaneError, path: Path) -> str:
    """Return the error's sentence without its place, which may be a path of this machine."""
    place = error.place.removeprefix(str(path)).strip(", ")
    told = f"{f'{place}: ' if place else ''}{error.found}, but {error.needed}"
    return told.replace(f"{path.parent}/", "")


def _remarks(readme: Path) -> dict[str, str]:
    """Return what the data's own page says of hostile and broken files, by name."""
    text = readme.read_text() if readme.exists() else ""
    told = text.partition("Hostile or broken on purpose:")[2].partition("\n\n")[0]
    listed = " ".join(told.split()).partition(". ")[0]
    return {
        name: f"hostile or broken on purpose{f': {why}' if why else ''}"
        for name, why in re.findall(r"`([^`]+)`(?: \(([^)]*)\))?", listed)
    }


def _beside(path: Path) -> str:
    """Tell whether a file holds the values of an ONNX file beside it."""
    models = path.parent.glob("*.onnx") if path.suffix == ".bin" else ()
    if any(path.name.encode() in model.read_bytes() for model in models):
        return "values of an ONNX file beside it"
    return ""


def _memory(path: Path) -> float | None:
    """Return the peak memory in MB of reading a file with outside values, in a process of its own."""
    if not _is_outside(path):
        return None
    return round(float(_alone("--peak", path) or "nan"), 1)


def _is_outside(path: Path) -> bool:
    import onnx

    try:
        model: Any = onnx.load_model(str(path), load_external_data=False)
    except Exception:  # no ONNX file at all
        return False
    inside = [a.t for node in model.graph.node for a in node.attribute]
    return any(x.external_data for x in [*model.graph.initializer, *inside])


def _peak(path: Path) -> float:
    """Return by how many MB reading a file raises this process's peak memory."""
    host = Host.installed()
    _survey(host, "small-cnn")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        _survey(host, str(path))
    except SaneError as error:
        print(error, file=sys.stderr)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def _runtime(path: Path) -> str:
    if find_spec("onnxruntime") is None:
        return "-"
    return _alone("--execute", path) or "neither"


def _execute(path: Path) -> str:
    """Return whether onnxruntime runs or loads a model."""
    import numpy as np
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng, given = np.random.default_rng(0), {}
    try:
        for x in session.get_inputs():
            shape = [size if isinstance(size, int) and size > 0 else 1 for size in x.shape]
            given[x.name] = _random(rng, x.type, shape)
        session.run(None, given)
    except Exception:  # a guessed shape or type that the model does not take
        return "loads"
    return "runs"


def _random(rng: Any, kind: str, shape: Sequence[int]) -> Any:
    types = {"float": "float32", "double": "float64", "float16": "float16"}
    name = kind.removeprefix("tensor(").removesuffix(")")
    if name in types:
        return rng.normal(size=shape).astype(types[name])
    return rng.integers(0, 2, size=shape).astype(name)


def _alone(flag: str, path: Path) -> str:
    """Run this file on a path in a process of its own, which may crash; empty where it does."""
    command = [sys.executable, __file__, flag, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _judge(rows: Sequence[Row]) -> int:
    """Print what the run found; return 1 where something is not as it should be."""
    wrong = [f"{x.file}: {x.told}" for x in rows if x.read == "FAILED"]
    wrong += [f"{x.file}: {x.seconds} s" for x in rows if x.seconds > SLOWEST]
    wrong += [
        f"{x.file}: onnxruntime {x.runtime} it, and it is read {x.read} ({x.told})"
        for x in rows
        if x.runtime in ("runs", "loads")
        and x.read != "in full"
        and not x.told.startswith(NO_WEIGHTS)
    ]
    slowest = max(rows, key=lambda x: x.seconds)
    print(page(rows).splitlines()[len(INTRO.splitlines()) + 1])
    print(
        f"Slowest: {slowest.file}, {slowest.seconds} s; {sum(x.seconds for x in rows):.1f} s in all."
    )
    for row in rows:
        if row.megabytes is not None:
            print(f"Outside values: {row.file}, {row.megabytes} MB beyond the imports.")
    for text in wrong:
        print(f"WRONG: {text}")
    return int(bool(wrong))


if __name__ == "__main__":
    main()
