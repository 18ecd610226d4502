"""Draw what `real_networks.py` measured: each network's accuracy from the default initialisation and from `sane-init`.

    python benchmarks/real_networks_picture.py

reads `benchmarks/results/real_networks.json` and writes `docs/img/real_networks.png`, the picture of the README. Shown are the tasks that
nothing was settled on, the mean over seeds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from real_networks_report import SETTLED

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "img" / "real_networks.png"
EPOCHS = {"0": "before training", "1": "after one epoch"}
COLORS = {"default": "#8c8c8c", "sane-init": "#d95f02"}
TASKS = {
    "photos10": "ten kinds of photos",
    "animals": "animal silhouettes",
    "pneumonia": "X-rays, pneumonia or not",
}
Accuracies = Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]]
"""By (task, network), method and epoch."""


def main() -> None:
    """Draw the picture."""
    runs = json.loads((ROOT / "benchmarks" / "results" / "real_networks.json").read_text())
    draw(accuracies(runs), PICTURE)


def accuracies(runs: list[dict[str, object]]) -> Accuracies:
    """Return the mean over seeds of test accuracy, of the pairs that both methods have measured.

    As the network was written before training, and with batch norm's statistics measured anew after it.
    """
    found: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = defaultdict(dict)
    for run in runs:
        task, method = str(run["task"]), str(run["method"])
        if task in SETTLED or method not in COLORS or run["epochs"] != 3:
            continue
        kept = found[task, str(run["network"])].setdefault(method, defaultdict(list))
        for epoch in EPOCHS:
            reading = run["as_is" if epoch == "0" else "anew"]
            assert isinstance(reading, dict)
            kept[epoch].append(reading[epoch])
    return {
        pair: {m: {e: mean(x) for e, x in by.items()} for m, by in methods.items()}
        for pair, methods in sorted(found.items(), key=lambda x: [*TASKS].index(x[0][0]))
        if methods.keys() == COLORS.keys()
    }


def draw(figures: Accuracies, path: Path) -> None:
    """Draw a line per network and task, from the default's accuracy to ours, at both epochs."""
    from matplotlib.figure import Figure

    rows = [*figures]
    figure = Figure(figsize=(9.5, 0.9 + 0.3 * (len(rows) + 0.5 * len(TASKS))), layout="constrained")
    panels = figure.subplots(1, len(EPOCHS), sharey=True)
    heights, height, labels = {}, 0.0, []
    for task, title in TASKS.items():
        for row in (row for row in rows if row[0] == task):
            heights[row] = height
            labels.append((height, f"{row[1]}, {title}"))
            height += 1
        height += 0.5
    for panel, (epoch, title) in zip(panels, EPOCHS.items(), strict=True):
        for row, methods in figures.items():
            ends = [100 * methods[method][epoch] for method in COLORS]
            panel.plot(ends, [heights[row]] * 2, color="#cccccc", linewidth=2, zorder=1)
        for method, color in COLORS.items():
            x = [100 * figures[row][method][epoch] for row in rows]
            label = "default initialisation" if method == "default" else "sane-init"
            panel.scatter(x, [heights[r] for r in rows], color=color, s=36, label=label, zorder=2)
        panel.set_title(title, fontsize=11)
        panel.set_xlim(0, 100)
        panel.set_xlabel("test accuracy in %")
        panel.grid(axis="x", color="#eeeeee")
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(left=False)
    panels[0].set_yticks([y for y, _ in labels], [label for _, label in labels], fontsize=9)
    panels[0].invert_yaxis()
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
