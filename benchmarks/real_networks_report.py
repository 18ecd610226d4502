"""The page of `real_networks.py`: what was asked for and whether it was met, means, spread and losses.

Figures are of the network as it was written before training, and with batch norm's statistics measured anew afterwards: those that
training leaves behind lag, which makes a default of some networks look like chance for epochs. Both are in the tables.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

Run = dict[str, Any]
SETTLED = ("cifar10", "fashion", "photos10b")
SEEN = {"photos10": "ImageNet classes", "photos10b": "ImageNet classes", "cifar10": "near ImageNet"}
"""Tasks whose classes the EfficientNet-Lites have seen. Networks of the wheel have seen none of these classes."""
GROUPS = {
    "Tasks whose classes the prompts of the extra have seen (photos10)": ("photos10",),
    "Tasks that no prompt has seen (pneumonia, animal silhouettes)": ("pneumonia", "animals"),
    "Tasks that options were settled on": SETTLED,
}
LABELS = {
    "default": "default",
    "sane-init": "sane-init, extra",
    "wheel": "sane-init, wheel alone",
    "selection": "weight selection",
    "iatransfer": "iatransfer",
    "fitted": "random features, ridge",
    "fine-tuning": "fine-tuning",
    "fine-tuning-fitted": "fine-tuning, classifier fitted",
}
RIVALS = ("selection", "iatransfer", "fitted")
OURS = ("sane-init", "wheel")
MOBILE, OWN = ("mobile", "EfficientNet"), "the prompt's own"
EPOCHS = (0, 1, 3, 10)
WORSE_AT_MOST = 0.05


@dataclass(frozen=True, eq=False)
class CellRuns:
    """The runs of a network on a task: by method, seed and epoch, (as it is, measured anew)."""

    network: str
    task: str
    family: str
    chance: float
    figures: Mapping[str, Mapping[int, Mapping[int, tuple[float, float]]]]

    def values(self, method: str, epoch: int, *, as_is: bool | None = None) -> dict[int, float]:
        """Return the accuracy of each seed; as it is before training, unless told otherwise."""
        column = int(not (epoch == 0 if as_is is None else as_is))
        seeds = self.figures.get(method, {})
        return {seed: found[epoch][column] for seed, found in seeds.items() if epoch in found}

    def gains(self, method: str, rival: str, epoch: int) -> list[float]:
        """Return what the method is ahead of the rival, for every seed that both have."""
        mine, theirs = self.values(method, epoch), self.values(rival, epoch)
        return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]

    @property
    def is_reported(self) -> bool:
        """Return whether no option was settled on the task."""
        return self.task not in SETTLED


def publish(work: Path, folder: Path, families: Mapping[str, str]) -> bool:
    """Write real_networks.md and .json in the folder; return whether any aim is missed."""
    runs = [json.loads(path.read_text()) for path in sorted(work.glob("*.json"))]
    runs = [run for run in runs if "method" in run]
    cells = list(_cells(runs, families))
    verdicts = [*_aims(cells)]
    lines = [
        f"{len(runs)} runs; AdamW, one cycle up to {', '.join(sorted({str(x['lr']) for x in runs}))}, batches of 64."
        " Before training a network is as it was written; later batch norm's statistics are measured anew.",
        *_of_named_prompts(runs),
        "",
        *_means(cells),
        *verdicts,
        "",
        *_losses(cells),
        *_times(runs),
    ]
    for family in dict.fromkeys(cell.family for cell in cells):
        lines += ["", f"## {family}", "", *_table([c for c in cells if c.family == family])]
    text = "\n".join([*lines, ""])
    (folder / "real_networks.md").write_text(text)
    kept = json.dumps(sorted(runs, key=lambda run: [str(run[k]) for k in ("network", "task")]))
    (folder / "real_networks.json").write_text(kept.replace('{"network', '\n{"network') + "\n")
    print(text)
    return any("MISSED" in line for line in verdicts)


def _of_named_prompts(runs: Sequence[Run]) -> list[str]:
    """Return a line on runs of before `sane-init` was left to choose its prompts; they are not run again."""
    count = sum(run.get("prompts") == "named" for run in runs)
    told = (
        f"In {count} of the runs of sane-init EfficientNet-Lite0 and Lite1 were named as prompts."
    )
    return ["", told] if count else []


def _cells(runs: Sequence[Run], families: Mapping[str, str]) -> Iterator[CellRuns]:
    grouped: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        grouped[run["network"], run["task"]].append(run)
    for network, family in families.items():
        for (name, task), found in sorted(grouped.items()):
            if name == network:
                chance = 1 / found[0]["classes"]
                yield CellRuns(network, task, family, chance, _figures(found))


def _figures(runs: Sequence[Run]) -> dict[str, dict[int, dict[int, tuple[float, float]]]]:
    """Return the figures by method, seed and epoch; the tenth epoch is of the longer training alone."""
    figures: Any = defaultdict(lambda: defaultdict(dict))
    for run in sorted(runs, key=lambda run: run["method"] != "default"):
        taken = run
        if not run["as_is"]:  # nothing could be lent
            same = ("seed", "epochs")
            taken = next(
                (x for x in runs if x["method"] == "default" and all(x[k] == run[k] for k in same)),
                run,
            )
        for epoch, as_is in taken["as_is"].items():
            if (int(epoch) == EPOCHS[-1]) == (run["epochs"] == EPOCHS[-1]):
                figures[run["method"]][run["seed"]][int(epoch)] = (as_is, taken["anew"][epoch])
    return figures  # type: ignore[no-any-return]


def _deviation(cells: Sequence[CellRuns], method: str, rival: str, epoch: int) -> float:
    """Return the deviation of a gain between seeds, pooled over cells; that of two binomials where unknown."""
    found = [g for g in (c.gains(method, rival, epoch) for c in cells) if len(g) > 1]
    freedom = sum(len(g) - 1 for g in found)
    if not freedom:
        return sqrt(2 * 0.25 / 1000)
    return sqrt(sum((len(g) - 1) * statistics.variance(g) for g in found) / freedom)


def _means(cells: Sequence[CellRuns]) -> Iterator[str]:
    """Yield a table for each group of tasks: the means of every family, by method."""
    for title, tasks in GROUPS.items():
        chosen = [cell for cell in cells if cell.task in tasks]
        methods = [m for m in LABELS if any(m in cell.figures for cell in chosen)]
        if not chosen:
            continue
        yield f"{title}: mean accuracy at epochs 0 / 1 / 3"
        yield ""
        yield f"| family (cells) | {' | '.join(LABELS[m] for m in methods)} |"
        yield "|---" * (len(methods) + 1) + "|"
        for family in dict.fromkeys(cell.family for cell in chosen):
            own = [cell for cell in chosen if cell.family == family]
            shown = [" / ".join(_mean_of(own, m, e) for e in (0, 1, 3)) for m in methods]
            yield f"| {family} ({len(own)}) | {' | '.join(shown)} |"
        yield ""


def _mean_of(cells: Sequence[CellRuns], method: str, epoch: int) -> str:
    """Return the mean over cells of the means of seeds; a dash where a cell lacks the method."""
    found = [values for c in cells if (values := c.values(method, epoch).values())]
    if len(found) < len(cells):
        return "-"
    return f"{statistics.mean(map(statistics.mean, found)):.2f}"


def _aims(cells: Sequence[CellRuns]) -> Iterator[str]:
    """Yield a line for each aim: on tasks that nothing was settled on, and behind it on the others."""
    for family in dict.fromkeys(c.family for c in cells if c.family != OWN):
        own = [c for c in cells if c.family == family]
        for method, share in zip(OURS, (1.0, 0.5), strict=True):
            yield from _family_aims(own, cells, family, method, share)
        for rival in RIVALS:
            yield _against(own, cells, family, rival)
    for method in OURS:
        yield _never_worse(cells, method)
    for rival in ("fine-tuning", "fine-tuning-fitted"):
        own = [c for c in cells if c.family == OWN]
        yield _not_behind(own, cells, "sane-init", rival, (0, 1, 3), f"{OWN} architecture")


def _family_aims(
    own: Sequence[CellRuns], cells: Sequence[CellRuns], family: str, method: str, share: float
) -> Iterator[str]:
    label = f"{family}, {LABELS[method]}"
    wanted = share * (0.25 if family in MOBILE else 0.15)
    yield _verdict(
        f"{label}: {wanted:.3f} above chance before training on every task",
        _split(own, lambda c: _above_chance(c, method)),
        lambda found: min(found) >= wanted,
        lambda found: ", ".join(f"{x:+.2f}" for x in sorted(found)),
    )
    if family in MOBILE:
        for epoch, points in ((1, 0.15), (3, 0.10)):
            yield _ahead(own, cells, method, epoch, share * points, label)
    else:
        for epoch in (0, 1):
            yield _ahead(own, cells, method, epoch, 0.0, label)
        yield _not_behind(own, cells, method, "default", (3, 10), label)


def _above_chance(cell: CellRuns, method: str) -> list[float]:
    """Return how far the mean of the seeds is above chance before training, or nothing."""
    values = cell.values(method, 0).values()
    return [statistics.mean(values) - cell.chance] if values else []


def _ahead(own: Any, cells: Any, method: str, epoch: int, wanted: float, label: str) -> str:
    found = _split(own, lambda c: c.gains(method, "default", epoch))
    return _verdict(
        f"{label}: {100 * wanted:.1f} points above the default, mean, epoch {epoch}",
        found,
        lambda gains: statistics.mean(gains) >= wanted and statistics.mean(gains) > 0,
        lambda gains: _mean_and_error(gains, _deviation(cells, method, "default", epoch)),
    )


def _not_behind(
    own: Any, cells: Any, method: str, rival: str, epochs: Sequence[int], label: str
) -> str:
    """Say whether the mean gain is no more than two standard errors below nought at every epoch."""
    parts, is_met = [], True
    for epoch in epochs:
        deviation = _deviation(cells, method, rival, epoch)
        for reported, gains in _split(own, lambda c, e=epoch: c.gains(method, rival, e)).items():
            text = _mean_and_error(gains, deviation)
            parts.append(f"epoch {epoch}: {text}{'' if reported else ' (settled)'}")
            behind = statistics.mean(gains) < -2 * deviation / sqrt(len(gains))
            is_met &= not (reported and behind)
    mark = ("met" if is_met else "MISSED") if parts else "not run"
    return f"- {mark}: {label}: not behind {LABELS[rival]} ({'; '.join(parts)})"


def _against(own: Any, cells: Any, family: str, rival: str) -> str:
    """Say whether we are ahead in the mean of the epochs that both have, and what the lead is at each."""
    found: dict[bool, list[float]] = defaultdict(list)
    parts = []
    for epoch in (0, 1, 3):
        gains = _split(own, lambda c, e=epoch: c.gains("sane-init", rival, e))
        for reported, values in gains.items():
            found[reported] += values
        if True in gains:
            deviation = _deviation(cells, "sane-init", rival, epoch)
            parts.append(f"epoch {epoch}: {_mean_and_error(gains[True], deviation)}")
    return _verdict(
        f"{family}, sane-init, extra: ahead of {LABELS[rival]} in the mean ({'; '.join(parts)})",
        found,
        lambda gains: statistics.mean(gains) > 0,
        lambda gains: f"{statistics.mean(gains):+.3f}",
    )


def _never_worse(cells: Sequence[CellRuns], method: str) -> str:
    deviation = _deviation(cells, method, "default", 3)
    worse, all_of = [], 0
    for cell in cells:
        gains = cell.gains(method, "default", 3)
        all_of += bool(gains)
        if gains and statistics.mean(gains) < -2 * deviation / sqrt(len(gains)):
            worse.append(f"{cell.network} on {cell.task} {statistics.mean(gains):+.3f}")
    mark = "met" if len(worse) <= WORSE_AT_MOST * all_of else "MISSED"
    told = f"{len(worse)} of {all_of} cells{': ' * bool(worse)}{', '.join(worse)}"
    return f"- {mark}: {LABELS[method]}: worse than the default at epoch 3, by more than two errors, in at most 5 % ({told})"


def _split(own: Sequence[CellRuns], gains: Any) -> dict[bool, list[float]]:
    """Return all gains of the cells, those on tasks that nothing was settled on first."""
    found = {x: [g for c in own if c.is_reported == x for g in gains(c)] for x in (True, False)}
    return {reported: values for reported, values in found.items() if values}


def _verdict(text: str, found: Mapping[bool, list[float]], is_met: Any, show: Any) -> str:
    mark = ("met" if is_met(found[True]) else "MISSED") if found.get(True) else "not run"
    told = [show(found[True])] if found.get(True) else []
    told += [f"settled: {show(found[False])}"] if found.get(False) else []
    return f"- {mark}: {text}: {'; '.join(told)}"


def _mean_and_error(gains: Sequence[float], deviation: float) -> str:
    return f"{statistics.mean(gains):+.3f} ± {deviation / sqrt(len(gains)):.3f}"


def _losses(cells: Sequence[CellRuns]) -> Iterator[str]:
    """Yield every cell where another method is ahead of ours by more than two standard errors."""
    yield "Cells where another is ahead by more than two standard errors:"
    yield ""
    for rival in ("default", *RIVALS):
        for epoch in EPOCHS:
            deviation = _deviation(cells, "sane-init", rival, epoch)
            for cell in cells:
                gains = cell.gains("sane-init", rival, epoch)
                if gains and statistics.mean(gains) < -2 * deviation / sqrt(len(gains)):
                    yield f"- {cell.network}, {cell.task}, epoch {epoch}: {LABELS[rival]} {-statistics.mean(gains):+.3f}"
    yield ""


def _times(runs: Sequence[Run]) -> Iterator[str]:
    """Yield what the command took: seconds from start to end, peak memory, and what it chose."""
    yield "| network | sane-init | seconds, median | most | GB, most | chosen |"
    yield "|---|---|---|---|---|---|"
    grouped: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if "command_seconds" in run and run["epochs"] != EPOCHS[-1]:
            grouped[run["network"], run["method"]].append(run)
    for (network, method), found in grouped.items():
        seconds = [run["command_seconds"] for run in found]
        memory = max(run["peak_gb"] for run in found)
        names = [run["rows"][0]["name"] if run["rows"] else "" for run in found]
        chosen = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        yield (
            f"| {network} | {LABELS[method]} | {statistics.median(seconds):.0f} |"
            f" {max(seconds):.0f} | {memory:.2f} | {chosen} |"
        )


def _table(cells: Sequence[CellRuns]) -> Iterator[str]:
    yield "| task, network | initialisation | seeds | epoch 0 | 1 | 3 | 10 | other reading: 0 | 1 | 3 | 10 |"
    yield "|---" * 11 + "|"
    for cell in sorted(cells, key=lambda c: (c.task, c.network)):
        notes = [SEEN[cell.task]] if cell.task in SEEN else []
        notes += [] if cell.is_reported else ["settled on"]
        told_of = f" ({', '.join(notes)})" if notes else ""
        title = f"{cell.task}{told_of}, {cell.network}"
        for method, label in LABELS.items():
            if method not in cell.figures:
                continue
            told = [_cell(cell.values(method, e)) for e in EPOCHS]
            other = [_cell(cell.values(method, e, as_is=e > 0), spread=False) for e in EPOCHS]
            yield f"| {title} | {label} | {len(cell.figures[method])} | {' | '.join([*told, *other])} |"


def _cell(values: Mapping[int, float], *, spread: bool = True) -> str:
    if not values:
        return ""
    shown = f"{statistics.mean(values.values()):.3f}"
    return (
        f"{shown} ± {statistics.stdev(values.values()):.3f}"
        if spread and len(values) > 1
        else shown
    )
