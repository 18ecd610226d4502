"""Show costs of networks: a table with notes, comma-separated values, or plain data for JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from sane_plugins.cli.console import note, print_table
from sane_plugins.errors import SaneError

if TYPE_CHECKING:
    from sane_plugins.cost import LatencyEstimate, LatencyModel, NetworkCost

_COLUMNS = ("source", "input", "parameters", "MACs", "activations", "peak memory")
_COUNTS = ("parameters", "macs", "activations", "layers", "weight_bytes", "peak_bytes")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SCALES = ("", "k", "M", "G", "T", "P")
_CLOCKS = {"cpu": "processor time", "wall": "wall-clock time"}


@dataclass(frozen=True)
class CostTable:
    """One row per source: its cost, or why it has none. `model` predicts latencies, where that is wanted."""

    sources: Sequence[str]
    costs: Mapping[str, NetworkCost]
    errors: Mapping[str, SaneError]
    model: LatencyModel | None

    def records(self) -> dict[str, Any]:
        """Return plain data by source."""
        return {source: self._record(source) for source in self.sources}

    def csv(self) -> str:
        """Return comma-separated values, with a header."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        kinds, parts = ("measured", "predicted"), ("seconds", "low", "high")
        timed = [f"{kind}_{part}" for kind in kinds for part in parts]
        writer.writerow(("source", "input", *_COUNTS, *timed, "error"))
        for source in self.sources:
            found = self.costs.get(source)
            counts: list[object] = [""] * (1 + len(_COUNTS))
            if found:
                counts = [_inputs(found), *(getattr(found, name) for name in _COUNTS)]
            times = [*_seconds(found and found.latency), *_seconds(self._predicted(source))]
            writer.writerow([source, *counts, *times, self.errors.get(source, "")])
        return text.getvalue().removesuffix("\n")

    def show(self) -> None:
        """Print the table, and on stderr what a reader should know of the figures."""
        is_timed = any(found.latency for found in self.costs.values())
        columns = [*_COLUMNS, *(["latency"] if is_timed else [])]
        columns += ["predicted latency"] if self.model else []
        rows = [(*self._row(source, is_timed), *[""] * len(columns)) for source in self.sources]
        print_table("cost of inference", columns, [row[: len(columns)] for row in rows])
        for text in self._notes():
            note(f"Note: {text}.")
        for error in self.errors.values():
            note(f"Error: {error}")

    def _predicted(self, source: str) -> LatencyEstimate | None:
        return (
            self.model.predict(self.costs[source]) if self.model and source in self.costs else None
        )

    def _record(self, source: str) -> dict[str, Any]:
        if source in self.errors:
            return {"error": str(self.errors[source])}
        predicted = self._predicted(source)
        return {**asdict(self.costs[source]), "predicted_latency": predicted and asdict(predicted)}

    def _row(self, source: str, is_timed: bool) -> Iterator[str]:
        yield source
        if source in self.errors:
            yield "not counted"
            return
        found = self.costs[source]
        yield _inputs(found)
        yield from map(_number, (found.parameters, found.macs, found.activations))
        yield _bytes(found.peak_bytes)
        if is_timed:
            yield _time(found.latency)
        yield _time(self._predicted(source))

    def _notes(self) -> Iterator[str]:
        for source, found in self.costs.items():
            yield from (f"{source}: {text}" for text in found.notes)
        if timed := next((x.latency for x in self.costs.values() if x.latency), None):
            yield f"latency is the median, and the 5 to 95 % range, on {_way(timed)}"
        if self.model is not None:
            yield from (
                f"{source}: no latency is predicted, as what it reads and writes is not known"
                for source, found in self.costs.items()
                if found.moved_bytes is None
            )
            yield (
                f"predicted latency is fitted to {len(self.model.residuals)} networks that were measured on"
                f" {_way(self.model)}; its range holds for 90 % of networks like those"
            )


def _way(measured: Any) -> str:
    """Say on what, with how many threads and by which clock was measured."""
    count = measured.threads
    threads = "one thread" if count == 1 else f"{count} threads"
    return f"{measured.device}, {threads}, {_CLOCKS.get(measured.clock, measured.clock)}"


def _seconds(time: Any) -> tuple[object, ...]:
    return (time.seconds, *time.interval) if time else ("", "", "")


def _inputs(found: NetworkCost) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in found.inputs)


def _number(value: float) -> str:
    scale = 0
    while value >= 1000 and scale < len(_SCALES) - 1:
        value, scale = value / 1000, scale + 1
    return f"{value:.4g} {_SCALES[scale]}".strip()


def _bytes(value: float | None) -> str:
    if value is None:
        return "unknown"
    unit = 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.4g} {_UNITS[unit]}"


def _time(time: Any) -> str:
    if time is None:
        return ""
    low, high = time.interval
    return f"{1000 * time.seconds:.3g} ms ({1000 * low:.3g} to {1000 * high:.3g})"
