"""The zoo of real forms travels in parts, and what a SANE adds is measured against noise as far away."""

from __future__ import annotations

import argparse
import ast
import json
import shutil
from pathlib import Path

import learned_prior
import learned_prior_runs
import numpy as np
import paper
import prompt_ranking
import pytest
import real_features
import real_forms_export
import torch

from sane_plugins.architectures import build
from sane_plugins.zoo import Entry, Zoo, write_zoo

FACTORY = {"name": "mlp", "channels_in": 1, "classes": 3}


def test_parts_of_an_export_are_the_zoo_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [
        (
            Entry(network=f"n{i}", checkpoint="0", factory=FACTORY, properties={"finite": True}),
            build(FACTORY).state_dict(),
        )
        for i in range(5)
    ]
    real = write_zoo(tmp_path / "real-forms", "real-forms", items)
    monkeypatch.setattr(real_forms_export, "PART_BYTES", 1)
    monkeypatch.setattr(real_forms_export, "PARTS", 2)
    together = tmp_path / "together"
    together.mkdir()
    for part in range(3):
        out = tmp_path / f"out{part}"
        real_forms_export.export(argparse.Namespace(work=tmp_path, out=out, part=part))
        for path in out.glob("*.safetensors"):
            shutil.copy(path, together)
    shutil.copy(tmp_path / "half" / "index.jsonl", together)
    came = Zoo.open(together)
    assert [entry.key for entry in came.entries] == [entry.key for entry in real.entries]
    for entry in came.entries:
        for key, value in came.state_dict(entry).items():
            own = dict(items[int(entry.network[1:])][1])[key]
            assert torch.equal(value, own.half() if own.is_floating_point() else own)


def test_noise_is_as_far_away_in_every_tensor_and_elsewhere() -> None:
    cell = object.__new__(learned_prior_runs.Cell)
    cell.seed = 0
    module, other = build(FACTORY), build(FACTORY)
    noised = cell._noised(module, other, 0)
    for (key, own), (_, drawn) in zip(
        module.named_parameters(), noised.named_parameters(), strict=True
    ):
        there = dict(other.named_parameters())[key]
        assert torch.allclose((drawn - own).norm(), (there - own).norm(), rtol=1e-4)
        assert own.numel() < 10 or not torch.allclose(drawn, there)


def test_equal_runs_add_nothing_and_better_ones_what_they_are_better_by() -> None:
    names = {name for own, others in learned_prior.JOBS.values() for name in (own, *others)}
    run = {"before": 0.5, "after": 0.6, "distance": 0.1, "wrong_repeated": 0.5}
    cells = [
        {"task": "t", "network": "n", "images": 9, "seed": seed, "runs": dict.fromkeys(names, run)}
        for seed in range(3)
    ]
    assert learned_prior._gain(cells, "filled", "graft", "after") == "+0.0 ± 0.0"
    for cell in cells:
        cell["runs"] = {**cell["runs"], "filled": {**run, "after": 0.7}}
    assert learned_prior._gain(cells, "filled", "graft", "after") == "+10.0 ± 0.0"
    assert "| t, n | 3 |" in learned_prior.tables({"cells": cells})


def test_only_forms_with_three_networks_on_a_task_are_ranked() -> None:
    forms, tasks = np.array(list("aaabbbc")), np.array(list("xxxxxyx"))
    assert real_features._ranked_forms(forms, tasks) == ["a"]


def test_a_ranking_by_worth_itself_is_perfect_and_loses_nothing() -> None:
    worth = {"a/1": 0.1, "a/2": 0.3, "b/1": 0.2, "c/1": 0.5}
    cells = [{"task": "t", "network": "n", "worth": worth}]
    assert prompt_ranking._jackknifed(cells, worth) == (1.0, 0.0)
    assert prompt_ranking._loss(cells[0], worth) == 0.0
    turned = {key: -value for key, value in worth.items()}
    assert prompt_ranking._jackknifed(cells, worth, turned) == (2.0, 0.0)
    assert prompt_ranking._loss(cells[0], turned) == pytest.approx(0.4)


def test_a_lead_ends_at_the_first_epoch_that_is_within_two_errors() -> None:
    ahead = [{"scratch": [0.1] * 26, "sampled": [0.5] * 26} for _ in range(3)]
    assert paper._lead(ahead, "sampled") == "to epoch 25, the last"
    ahead[0] = {**ahead[0], "sampled": [0.5] * 6 + [0.1] * 20}
    assert paper._lead(ahead, "sampled") == "to epoch 5"
    assert (
        paper._lead([{"scratch": [0.1], "sampled": [0.1]}] * 3, "sampled") == "not before training"
    )


PAGES = [
    "learned_prior",
    "paper",
    "prompt_ranking",
    "real_ablation",
    "real_features",
    "real_reconstruction",
]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_figures_give(name: str) -> None:
    path = Path(learned_prior.RESULTS) / f"{name}.json"
    tables = __import__(name).tables
    assert path.with_suffix(".md").read_text() == tables(json.loads(path.read_text())) + "\n"


def test_a_benchmark_needs_no_module_that_only_releases_have() -> None:
    """They are run as `python benchmarks/NAME.py`, which finds their own folder and no other."""
    folder = Path(learned_prior.__file__).parent
    released = {path.stem for path in (folder.parent / "tools" / "release").glob("*.py")}
    assert "embedded" in released
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in released, path
            elif isinstance(node, ast.Import):
                assert not released & {alias.name for alias in node.names}, path
