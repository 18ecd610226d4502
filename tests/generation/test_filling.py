"""Filling and refinement: what is given stays, what is open follows from it, and steps lower the loss."""

from dataclasses import replace

import pytest
import torch
from pretraining.test_hidden_tokens import constant_rows, with_equal_rows
from pretraining.test_pretrain import TINY
from torch.nn.functional import cross_entropy

from sane_plugins.autoencoder import SANE, fill
from sane_plugins.errors import TaskError, UsageError
from sane_plugins.generation import FilledTransfer, RefineOptions, refine
from sane_plugins.grafting import Transplant
from sane_plugins.pretraining import PretrainOptions, pretrain
from sane_plugins.tasks import Task
from sane_plugins.weights import from_module

KEY = "11.weight"  # of the small CNN's hidden layer, 20 rows


@pytest.fixture(scope="module")
def sane(tmp_path_factory) -> SANE:
    """A SANE that has learnt one network, whose rows are alike."""
    folder = tmp_path_factory.mktemp("filling")
    options = PretrainOptions(
        steps=90, batch=8, views=0, lr=1e-2, bf16=False, hidden=1.0, noise=0.0, gamma=0.0
    )
    return pretrain([constant_rows(folder)], TINY, options, folder / "sane.safetensors")


def test_what_is_given_stays_bit_for_bit_and_open_values_are_not_read(sane) -> None:
    graph = from_module(with_equal_rows(0))
    is_open = torch.zeros(graph.tensors[KEY].shape, dtype=torch.bool)
    is_open[5:8] = True
    filled = fill(sane, graph, {KEY: is_open})
    for param, tensor in graph.items():
        given = ~is_open if param.key == KEY else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(filled.tensors[param.key][given], tensor[given])
    other = graph.tensors[KEY].clone()
    other[is_open] = 1e3
    again = fill(sane, graph.replace({KEY: other}), {KEY: is_open})
    assert torch.equal(again.tensors[KEY], filled.tensors[KEY])
    assert not torch.equal(filled.tensors[KEY], graph.tensors[KEY])
    assert fill(sane, graph, {KEY: torch.zeros_like(is_open)}) is graph


def test_open_rows_follow_from_given_ones(sane) -> None:
    """Filled rows lie nearer to the network's own than any guess from its scale alone."""
    graph = from_module(with_equal_rows(0))
    truth = graph.tensors[KEY]
    is_open = torch.zeros(truth.shape, dtype=torch.bool)
    is_open[6:9] = True
    filled = fill(sane, graph, {KEY: is_open}).tensors[KEY]
    error = float((filled - truth)[is_open].square().mean() / truth.var())
    assert error < 0.7  # a guess of the mean has 1, a fresh draw 2


def test_a_tensor_that_is_open_as_a_whole_gets_a_scale(sane) -> None:
    graph = from_module(with_equal_rows(0))
    filled = fill(sane, graph, {KEY: torch.ones(graph.tensors[KEY].shape, dtype=torch.bool)})
    deviation = float(filled.tensors[KEY].std())
    assert 0.1 < deviation / float(graph.tensors[KEY].std()) < 10


def test_a_sane_that_cannot_fill_says_so() -> None:
    graph = from_module(with_equal_rows(0))
    with pytest.raises(UsageError, match="has not learnt"):
        fill(SANE(TINY), graph, {KEY: torch.ones(graph.tensors[KEY].shape, dtype=torch.bool)})


def task() -> Task:
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 10
    x = torch.randn(200, 1, 28, 28, generator=rng)
    for label in range(10):
        x[y == label, :, 2 * label : 2 * label + 4] += 2.0
    names = tuple(map(str, range(10)))
    return Task(name="lines", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20], classes=names)


def test_a_filled_transfer_fills_what_the_method_left_and_nothing_else(sane) -> None:
    module, before = (
        with_equal_rows(3),
        {k: v.clone() for k, v in with_equal_rows(3).state_dict().items()},
    )
    lent = [key for key in before if not key.startswith(("8.", "14."))]

    def lend(*_) -> Transplant:
        return Transplant(origins=dict.fromkeys(lent, "transferred"), similarity=1.0)

    written = FilledTransfer(lend, sane)(module, None, task(), torch.Generator())
    changed = {key for key, x in module.state_dict().items() if not torch.equal(x, before[key])}
    assert changed == {"8.weight", "8.bias"}  # the classifier, 14, is the caller's
    assert {k for k, label in written.origins.items() if label == "filled"} == changed
    assert "2 tensors were filled" in written.notes


@pytest.mark.parametrize("is_anchored", [True, False])
def test_refinement_lowers_the_loss_and_begins_where_it_should(sane, is_anchored) -> None:
    given, module = task(), with_equal_rows(5)
    options = RefineOptions(steps=25, lr=5e-2, batch=200, is_anchored=is_anchored)
    with torch.no_grad():
        first = cross_entropy(module(given.x_train), given.y_train).item()
    rng = torch.Generator().manual_seed(0)
    losses = refine(module, sane, given.x_train, given.y_train, options, rng)
    with torch.no_grad():
        last = cross_entropy(module(given.x_train), given.y_train).item()
    assert (abs(losses[0] - first) < 0.05) or not is_anchored
    assert last < losses[0] and len(losses) == 25


def test_no_step_changes_nothing_where_anchored(sane) -> None:
    given, module = task(), with_equal_rows(5)
    before = {key: x.clone() for key, x in module.state_dict().items()}
    options = RefineOptions(steps=0)
    assert refine(module, sane, given.x_train, given.y_train, options, torch.Generator()) == []
    assert all(torch.allclose(x, before[key], atol=1e-6) for key, x in module.state_dict().items())


def test_a_refinement_that_explodes_leaves_the_network(sane) -> None:
    given, module = task(), with_equal_rows(5)
    before = {key: x.clone() for key, x in module.state_dict().items()}
    broken = replace(given, x_train=given.x_train * float("inf"))
    with pytest.raises(TaskError, match="not finite"):
        refine(
            module, sane, broken.x_train, broken.y_train, RefineOptions(steps=2), torch.Generator()
        )
    assert all(torch.equal(x, before[key]) for key, x in module.state_dict().items())
