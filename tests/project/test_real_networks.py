"""The matrix of benchmarks/real_networks.py, its rivals, and the page that tells what was met."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import real_network_runs
import real_networks
import real_networks_report as report
import rivals
import torch
from torch import nn

CORE = [n for n in real_networks.NETWORKS if n.family != report.OWN]
FAMILIES = {"net": "mobile", "other": "residual", "lite": report.OWN}


def test_every_network_meets_two_tasks_and_every_task_four_networks() -> None:
    met = Counter(task for network in CORE for task in network.tasks.split())
    assert len(CORE) == 13
    assert min(len({*network.tasks.split()}) for network in CORE) >= 2
    assert len(met) == 5 and min(met.values()) >= 4
    assert sum(len(network.ten.split()) for network in CORE) >= sum(met.values()) / 3
    assert all({*network.tasks.split()} - {*report.SETTLED} for network in CORE)


def test_a_thin_picture_of_all_cells_comes_first() -> None:
    given = real_networks.parse(["--extra", "."])
    cells = real_networks.cells(given)
    first = cells[: len({(c.network.name, c.task) for c in cells}) * 3]
    assert {(c.network.name, c.task) for c in first} == {(c.network.name, c.task) for c in cells}
    assert {c.seed for c in first} == {0}
    assert {c.method for c in first} == {*real_network_runs.MAIN}
    assert len({c.name for c in cells}) == len(cells)


def test_the_command_sees_no_test_image(tmp_path: Path) -> None:
    data = tmp_path / "datasets"
    data.mkdir()
    images = np.arange(90 * 4).reshape(90, 2, 2).astype(np.int64)
    stored = {"x_train": images[:60], "y_train": np.arange(60) % 2}
    stored |= {"x_test": images[60:], "y_test": np.arange(30) % 2}
    np.savez(data / "animal_mnist.npz", **stored)
    setting = real_network_runs.Setting(tmp_path, tmp_path, tmp_path)
    cell = real_network_runs.Cell(CORE[0], "animals", 0, "default", 3)
    seen, kept = (
        dict(np.load(real_network_runs.images_of(setting, cell, for_command=x)))
        for x in (True, False)
    )
    assert np.array_equal(seen["x_train"], kept["x_train"])
    tested = {bytes(x) for x in kept["x_test"]}
    assert len(tested) == 30
    assert not tested & {bytes(x) for key in ("x_train", "x_test") for x in seen[key]}


def _network(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, 2, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def test_rivals_copy_a_network_to_its_like() -> None:
    images = torch.randn(2, 3, 8, 8)
    source = _network(8)
    for norm in (source[1], source[4]):
        norm.running_mean += 1
    selected, transferred = _network(8), _network(8)
    nn.init.zeros_(selected[8].weight)
    assert rivals.select_weights(selected, source, images) == 4
    assert rivals.iatransfer(transferred.apply(_disturb), source) == pytest.approx(1)
    state = source.state_dict()
    assert all(torch.equal(x, state[k]) for k, x in selected.state_dict().items() if "8." not in k)
    assert not selected[8].weight.any()  # the classifier is not lent
    assert all(torch.equal(x, state[k]) for k, x in transferred.named_parameters())
    assert not torch.equal(transferred[1].running_mean, state["1.running_mean"])


def _disturb(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.normal_(parameter)


def test_weight_selection_takes_the_first_entries_and_iatransfer_the_middle() -> None:
    source, images = _network(8), torch.randn(2, 3, 8, 8)
    selected, transferred = _network(4), _network(4)
    rivals.select_weights(selected, source, images)
    rivals.iatransfer(transferred, source)
    assert torch.equal(selected[3].weight, source[3].weight[:4, :4])
    assert torch.equal(transferred[3].weight, source[3].weight[2:6, 2:6])
    wide = _network(12)
    rivals.iatransfer(wide, source)
    assert torch.equal(wide[3].weight[2:10, 2:10], source[3].weight)
    assert not torch.equal(wide[3].weight[:8, :8], source[3].weight)


def _write_runs(folder: Path, lead: float, wheel: float | None = None) -> None:
    """Write runs in which the default has .2, .4 and .6, rivals .1 more, and we `lead` more."""
    leads = {"default": 0, "selection": 0.1, "iatransfer": 0.1, "fitted": 0.1, "sane-init": lead}
    leads["wheel"] = lead if wheel is None else wheel
    for network, task, seed in product(("net", "other"), ("photos10", "cifar10"), range(3)):
        for method, more in leads.items():
            figures = {"0": 0.2 + more, "1": 0.4 + more, "3": 0.6 + more + 0.001 * seed}
            run = {
                **{"network": network, "task": task, "seed": seed, "method": method, "epochs": 3},
                **{"lr": 1e-3, "classes": 10, "as_is": figures, "anew": figures},
            }
            (folder / f"{network}-{task}-{seed}-{method}-3.json").write_text(json.dumps(run))


@pytest.mark.parametrize("lead", [0.3, -0.05])
def test_aims_are_met_only_where_we_lead(tmp_path: Path, lead: float) -> None:
    _write_runs(tmp_path, lead)
    is_missed = report.publish(tmp_path, tmp_path, FAMILIES)
    lines = (tmp_path / "real_networks.md").read_text().split("\n")
    marks = Counter(x.split(":")[0] for x in lines if x.startswith(("- met", "- MISSED")))
    assert is_missed == (lead < 0)
    assert marks["- met" if lead < 0 else "- MISSED"] == 0
    assert marks["- MISSED" if lead < 0 else "- met"] >= 15


def test_a_lead_on_settled_tasks_alone_meets_nothing(tmp_path: Path) -> None:
    _write_runs(tmp_path, 0.3)
    for path in tmp_path.glob("*-photos10-*-sane-init-3.json"):
        run = json.loads(path.read_text())
        run["as_is"] = run["anew"] = dict.fromkeys(run["as_is"], 0.1)
        path.write_text(json.dumps(run))
    report.publish(tmp_path, tmp_path, FAMILIES)
    lines = (tmp_path / "real_networks.md").read_text().split("\n")
    extra = [x for x in lines if "sane-init, extra" in x and x.startswith("- ")]
    assert extra and all(x.startswith("- MISSED") for x in extra)


def test_what_could_lend_nothing_counts_as_the_default(tmp_path: Path) -> None:
    _write_runs(tmp_path, 0.3)
    for path in tmp_path.glob("*-iatransfer-3.json"):
        run = json.loads(path.read_text()) | {"as_is": {}, "anew": {}, "given": 0}
        path.write_text(json.dumps(run))
    report.publish(tmp_path, tmp_path, FAMILIES)
    text = (tmp_path / "real_networks.md").read_text()
    rows = [x for x in text.split("\n") if x.startswith("|") and "net" in x]
    default, rival = (
        next(x for x in rows if label in x).split("|")[4:] for label in ("default", "iatransfer")
    )
    assert default == rival
