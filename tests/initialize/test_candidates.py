"""Kinds of candidates are identities with labels; a builder builds, and neither scores nor names."""

import json
from dataclasses import asdict, fields
from functools import partial

import pytest
import torch

from sane_plugins.architectures import small_cnn
from sane_plugins.arguments import from_plain
from sane_plugins.autoencoder import embedded_sane
from sane_plugins.generation import choose_prompts, embedded_prompts
from sane_plugins.initialize import Family, InitializeOptions, Kind, Origin
from sane_plugins.initialize import ranking as ranking_module
from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.kinds import CandidateSpec
from sane_plugins.initialize.problem import InitializationProblem, prepare
from sane_plugins.tasks import load_task
from sane_plugins.weights import from_module


@pytest.fixture(scope="module")
def problem() -> InitializationProblem:
    task = load_task("digits", 28).subset(300, torch.Generator().manual_seed(0))
    prompts = choose_prompts(small_cnn(), embedded_prompts(), 2).graphs
    options = InitializeOptions(candidates=2, keep=1, norm_batches=2)
    return prepare(partial(small_cnn, 1, 10), task, prompts, embedded_sane(), options)


def test_kinds_are_written_as_before_and_come_back() -> None:
    """Files, streams of random numbers and tables of earlier versions hold these words."""
    labels = [
        "default",
        "default, classifier fitted",
        "structured default",
        "prompt",
        "mean of prompts",
        "transfer",
        "sane",
    ]
    assert [kind.label for kind in Kind] == labels
    assert json.loads(json.dumps([*Kind])) == labels
    assert [f"{kind}" for kind in Kind] == labels
    assert [Kind(label) for label in labels] == [*Kind]
    assert Kind.DEFAULT_FITTED.family is Family.DEFAULT
    assert Kind.MEAN_OF_PROMPTS.family is Family.PROMPT
    assert [kind for kind in Kind if kind.is_generated] == [Kind.SANE]
    assert Kind.TRANSFER.family is Family.TRANSFER


def test_a_spec_comes_back_from_a_file() -> None:
    spec = CandidateSpec(Kind.DEFAULT_FITTED, 3, 1, "default", 0.5)
    again = from_plain(CandidateSpec, json.loads(json.dumps(asdict(spec))), "spec")
    assert again == spec
    assert again.kind is Kind.DEFAULT_FITTED


def test_names_say_kind_draw_scale_and_share(problem) -> None:
    source = problem.transfer.aligned[0].source
    names = {
        CandidateSpec(Kind.DEFAULT, 1): "default 2",
        CandidateSpec(Kind.DEFAULT_FITTED): "default 1, classifier fitted",
        CandidateSpec(Kind.PROMPT, scale="default"): f"prompt {source}, default scale",
        CandidateSpec(Kind.MEAN_OF_PROMPTS): "mean of prompts",
        CandidateSpec(Kind.SANE, 4, 1, layers=0.5): (
            "SANE candidate 5, round 2, first 50% of the layers"
        ),
    }
    assert {spec: spec.name(problem) for spec in names} == names


def test_a_builder_does_not_score(problem, monkeypatch) -> None:
    monkeypatch.setattr(ranking_module, "rank", None)
    built = CandidateBuilder(problem).build(CandidateSpec(Kind.PROMPT))
    again = CandidateBuilder(problem).build(CandidateSpec(Kind.PROMPT))
    assert all(
        torch.equal(x, y)
        for x, y in zip(
            built.module.state_dict().values(), again.module.state_dict().values(), strict=True
        )
    )
    assert set(built.origins.values()) <= {*Origin}
    assert Origin.FITTED in built.origins.values()
    assert "score" not in {f.name for f in fields(built)}


def test_a_built_network_is_read_without_a_trace(problem, monkeypatch) -> None:
    module = problem.build_network()
    with monkeypatch.context() as patch:
        patch.setattr("sane_plugins.weights.modules.trace", None)
        graph = problem.read(module)
    whole = from_module(module)
    assert graph.layers == whole.layers
    assert [*graph.tensors] == [*whole.tensors]
    assert all(torch.equal(graph.tensors[key], whole.tensors[key]) for key in whole.tensors)
