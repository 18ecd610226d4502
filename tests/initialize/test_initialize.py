"""Initialisation: samplers do what they say, and what is chosen is never worse than the default."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from sane_plugins.architectures import small_cnn, wide_cnn
from sane_plugins.autoencoder import SANE, Latents, SANEConfig
from sane_plugins.errors import SourceError, TaskError, UsageError, ZooError
from sane_plugins.formats import from_state_dict
from sane_plugins.generation import (
    KDE,
    Gaussian,
    choose_prompts,
    embedded_prompts,
    rescale,
    transfer,
)
from sane_plugins.generation.prompts import activations
from sane_plugins.grafting import condition, find_classifier, fit_classifier
from sane_plugins.initialize import (
    InitializeOptions,
    TrainOptions,
    initialize,
    train_epochs,
)
from sane_plugins.initialize.training import TrainingRun
from sane_plugins.symmetry import canonical_form
from sane_plugins.tasks import Task, accuracy, load_task
from sane_plugins.weights import Tokens, detokenize, from_module, load_into, tokenize

WIDTH = 16
QUICK = InitializeOptions(candidates=4, keep=2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(classes: int = 10, hidden: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, classes),
    )


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits").subset(600, rng())


@pytest.fixture(scope="module")
def trained(task: Task) -> nn.Module:
    """Return a trained network with its channels in the order that prompts are given."""
    torch.manual_seed(5)
    module = network()
    train_epochs(module, task, 8, TrainOptions(lr=3e-3), rng())
    load_into(module, canonical_form(from_module(module), largest_first=True))
    return module


@pytest.fixture
def sane() -> SANE:
    torch.manual_seed(0)
    config = SANEConfig(
        token_width=WIDTH, latent_width=8, model_width=16, heads=2, layers=1, window=32, halo=8
    )
    return SANE(config).eval()


@pytest.fixture
def exact(monkeypatch) -> None:
    """Let latents be the tokens themselves, so that what surrounds the autoencoder is tested alone."""

    def encode(_: SANE, graph, **__: object) -> Latents:
        tokens = tokenize(graph, WIDTH)
        return Latents(tokens.values, graph.token_layout(WIDTH).spans)

    def decode(_: SANE, latents: torch.Tensor, template, **__: object):
        tokens = tokenize(template, WIDTH)
        return detokenize(Tokens(latents, tokens.mask, tokens.positions), template)

    monkeypatch.setattr(transfer, "encode", encode)
    monkeypatch.setattr(transfer, "decode", decode)


# Samplers


@pytest.fixture
def prompts() -> torch.Tensor:
    """Return three prompts (3, 50, 6) that lie far apart."""
    return torch.randn(3, 50, 6, generator=rng()) + 100 * torch.arange(3)[:, None, None]


def _nearest(drawn: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Return which prompt each token (count, T) lies nearest to."""
    return (drawn[:, None] - prompts).norm(dim=-1).argmin(1)


def test_coherent_draws_come_from_one_prompt_each_in_turn(prompts: torch.Tensor) -> None:
    which = _nearest(KDE(bandwidth=1e-3)(prompts, 6, rng()), prompts)
    assert (which == which[:, :1]).all()
    assert sorted(which[:, 0].tolist()) == [0, 0, 1, 1, 2, 2]


def test_per_token_draws_mix_all_prompts(prompts: torch.Tensor) -> None:
    which = _nearest(KDE(bandwidth=1e-3, prompt="token")(prompts, 6, rng()), prompts)
    assert all(len(row.unique()) == 3 for row in which)


def test_shared_noise_is_the_same_for_all_tokens(prompts: torch.Tensor) -> None:
    for noise, same in (("shared", True), ("token", False)):
        offset = KDE(bandwidth=0.1, noise=noise)(prompts[:1], 2, rng()) - prompts[0]
        assert torch.allclose(offset, offset[:, :1].expand_as(offset), atol=1e-4) is same


def test_without_bandwidth_a_prompt_comes_back(prompts: torch.Tensor) -> None:
    drawn = KDE(bandwidth=0.0)(prompts, 3, rng())
    assert {tuple(x.flatten().tolist()) for x in drawn} == {
        tuple(x.flatten().tolist()) for x in prompts
    }
    assert torch.equal(Gaussian()(prompts[:1], 2, rng())[1], prompts[0])


def test_bandwidth_is_relative_to_the_latents(prompts: torch.Tensor) -> None:
    small, large = (KDE()(scale * prompts, 2, rng()) for scale in (1, 1000))
    assert torch.allclose(1000 * small, large, rtol=1e-3)


@pytest.mark.parametrize("sampler", [KDE(), KDE(prompt="token"), KDE(noise="shared"), Gaussian()])
def test_same_seed_same_latents(sampler, prompts: torch.Tensor) -> None:
    assert torch.equal(sampler(prompts, 4, rng(1)), sampler(prompts, 4, rng(1)))
    assert not torch.equal(sampler(prompts, 4, rng(1)), sampler(prompts, 4, rng(2)))
    assert sampler(prompts, 4, rng()).shape == (4, 50, 6)


# Conditioning and the classifier


def test_conditioning_repairs_destroyed_statistics(task: Task, trained: nn.Module) -> None:
    module = network()
    module.load_state_dict(trained.state_dict())
    whole = accuracy(module, task.x_test, task.y_test)
    module[1].running_mean.fill_(30.0)
    module[1].running_var.fill_(1e-4)
    assert accuracy(module, task.x_test, task.y_test) < whole - 0.3
    weights = {key: value.clone() for key, value in module.named_parameters()}
    condition(module, task.x_train, 20, 32, rng())
    assert accuracy(module, task.x_test, task.y_test) > whole - 0.05
    assert all(torch.equal(value, weights[key]) for key, value in module.named_parameters())


def test_a_trial_is_scored_by_its_weights_not_by_stale_statistics(
    task: Task, trained: nn.Module
) -> None:
    stale = deepcopy(trained)
    norm = next(m for m in stale.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_mean.fill_(3.0)
    before = {key: value.clone() for key, value in stale.state_dict().items()}
    trials = [TrainingRun(module, task, TrainOptions(), rng()) for module in (stale, trained)]
    assert accuracy(stale, task.x_test, task.y_test) < 0.9 * trials[1].score()
    assert trials[0].score() == trials[1].score()
    assert all(torch.equal(value, before[key]) for key, value in stale.state_dict().items())


def test_conditioning_leaves_modes_as_they_were(task: Task) -> None:
    module = network().train()
    module[6].eval()
    condition(module, task.x_train, 2, 32, rng())
    assert [m.training for m in module] == [True] * 6 + [False, True]
    assert module[1].momentum == 0.1


def test_conditioning_without_batch_norm_does_nothing() -> None:
    module = nn.Linear(3, 3)
    condition(module, torch.full((4, 3), float("nan")), 2, 2, rng())


def test_fitted_classifier_is_far_above_chance(task: Task) -> None:
    torch.manual_seed(0)
    module = network()
    layer = find_classifier(module, task.x_train[:2])
    assert layer is module[7]
    fit_classifier(module, layer, task.x_train, task.y_train)
    assert accuracy(module, task.x_test, task.y_test) > 0.7


def test_no_linear_classifier_is_found_where_there_is_none(task: Task) -> None:
    module = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    assert find_classifier(module, task.x_train[:2]) is None


# The scale


def _conv(*more: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        *more,
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@pytest.mark.parametrize("more", [(), (nn.BatchNorm2d(8),)])
def test_scale_is_the_references_and_the_function_stays(task: Task, more) -> None:
    torch.manual_seed(0)
    module, reference = _conv(*more), _conv(*more).state_dict()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3).add_(0.01)
    condition(module, task.x_train, 4, 32, rng())
    images = task.x_train[:64]
    before, stats = module.eval()(images), {k: v.clone() for k, v in module.named_buffers()}
    keys = {key for key in reference if key.endswith("weight")} - {f"{len(module) - 1}.weight"}
    rescale(module, reference, keys, module[-1], images)
    for key in keys:
        parameter = module.get_parameter(key)
        if parameter.ndim > 1:
            assert torch.allclose(parameter.pow(2).mean(), reference[key].pow(2).mean(), rtol=1e-4)
    assert all(torch.equal(v, stats[k]) for k, v in module.named_buffers())
    condition(module, task.x_train, 4, 32, rng())
    after = module.eval()(images)
    assert (after - before).norm() < (0.1 if more else 1e-4) * before.norm()


# The whole way


@pytest.mark.usefixtures("exact")
def test_good_prompt_wins_and_is_what_comes_out(task: Task, trained: nn.Module, sane: SANE) -> None:
    options = InitializeOptions(
        candidates=4, keep=2, sampler=KDE(bandwidth=0.0), classifier="prompt"
    )
    done = initialize(network, task, [from_module(trained)], sane, options)
    # Latents are the tokens here: a draw is the prompt, which as the plainer of two alike is taken.
    assert done.chosen == "prompt"
    ours = next(row for row in done.rows if row.kind == "sane")
    default = max(row.last for row in done.rows if row.kind.family == "default" and row.curve)
    assert ours.about_equal
    assert ours.last > default + 2 * ours.error
    found, given = done.graph.tensors["4.weight"].flatten(), trained[4].weight.detach().flatten()
    assert torch.cosine_similarity(found, given, 0) > 1 - 1e-5  # its scale may be the default's
    assert torch.equal(done.module.state_dict()["0.weight"], done.graph.tensors["0.weight"])


@pytest.mark.usefixtures("exact")
def test_prompt_of_other_classes_lends_all_but_the_classifier(trained, sane: SANE) -> None:
    few = load_task("digits")
    keep, test = few.y_train < 4, few.y_test < 4
    few = Task(
        name="few",
        x_train=few.x_train[keep],
        y_train=few.y_train[keep],
        x_test=few.x_test[test],
        y_test=few.y_test[test],
        classes=few.classes[:4],
    )
    options = InitializeOptions(candidates=2, keep=1, sampler=KDE(bandwidth=0.0))
    done = initialize(partial(network, 4), few, [from_module(trained)], sane, options)
    assert done.provenance["prompts_fit"]
    assert done.graph.tensors["7.weight"].shape == (4, 32)
    best = next(row for row in done.rows if row.kind == "sane")
    assert best.before > 0.9


def test_few_shot_prompts_are_made_and_start_ahead(task: Task, trained, sane: SANE) -> None:
    options = InitializeOptions(candidates=2, keep=1, few_shot=2, few_shot_epochs=2)
    prompts = [from_module(trained)]
    done = initialize(network, task, prompts, sane, options)
    plain = initialize(network, task, prompts, sane, InitializeOptions(candidates=2, keep=1))
    assert len(done.provenance["few_shot"]["recipes"]) == 2
    assert done.provenance["prompts_fit"]
    direct = [max(r.before or 0 for r in x.rows if r.kind == "prompt") for x in (done, plain)]
    assert direct[0] >= direct[1] - 0.02  # two of the images held out


def test_garbage_prompts_lose_and_that_is_said(task: Task, sane: SANE) -> None:
    wild = from_module(network())
    wild = wild.replace({p.key: 1e4 * torch.randn(p.shape) for p in wild.params})
    done = initialize(network, task, [wild], sane, QUICK)
    assert done.chosen == "default"
    assert done.rows[0].chosen
    assert done.rows[0].kind != "sane"


@pytest.mark.parametrize("seed", [1, 2])
def test_chosen_is_the_best_of_as_many_defaults_as_candidates(
    task: Task, sane: SANE, seed: int
) -> None:
    options = InitializeOptions(candidates=4, keep=2, seed=seed, classifier="default")
    done = initialize(network, task, [from_module(network())], sane, options)
    after = [row.after for row in done.rows if row.after is not None]
    assert done.rows[0].after == max(after)
    assert [row.chosen for row in done.rows].count(True) == 1
    kinds = [row.kind for row in done.rows if row.curve]
    assert (
        kinds.count("sane") == 4
    )  # at the default's scale, the best at its own, and its first layers
    assert kinds.count("default") == 2
    assert {"sane", "default", "prompt"} == {r.kind for r in done.rows if r.after is not None}


def test_same_seed_same_bytes(task: Task, sane: SANE) -> None:
    torch.manual_seed(3)
    prompts = [from_module(network()), from_module(network())]
    first, again = (initialize(network, task, prompts, sane, QUICK) for _ in range(2))
    assert first.rows == again.rows
    for key, value in first.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[key])


def test_module_is_not_changed_and_counts_as_the_default(task: Task, trained, sane: SANE) -> None:
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    done = initialize(trained, task, [from_module(network())], sane, QUICK)
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert done.chosen == "default"
    assert any("as given" in note for note in done.notes)


def test_prompts_of_another_architecture_are_matched_and_noted(task: Task, sane: SANE) -> None:
    other = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    done = initialize(network, task, [from_module(other)], sane, QUICK)
    assert not done.provenance["prompts_fit"]
    assert any("another architecture" in note for note in done.notes)
    for _, tensor in done.graph.items():
        assert tensor.isfinite().all()


def test_places_are_of_the_same_kind_and_depth() -> None:
    prompt = from_module(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)))
    target = from_module(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(40, 2))
    )
    at = transfer.matching_tokens(prompt, target, 16).tolist()
    assert at[:4] == [0, 1, 0, 1]
    assert set(at[4:16]) == {0, 1}
    assert set(at[16:]) == {2, 3}


def test_what_cannot_be_used_is_told(task: Task, sane: SANE) -> None:
    with pytest.raises(TaskError, match="--size"):
        initialize(small_cnn, task, [from_module(small_cnn())], sane, QUICK)
    with pytest.raises(TaskError, match="10 classes"):
        initialize(partial(network, 3), task, [from_module(network())], sane, QUICK)
    with pytest.raises(UsageError, match="none were given"):
        initialize(network, task, [], sane, QUICK)
    broken = from_module(network())
    broken = broken.replace({"0.bias": torch.full((8,), float("nan"))})
    with pytest.raises(SourceError, match="not finite"):
        initialize(network, task, [broken], sane, QUICK)


# Prompts


def test_prompts_share_shapes_and_activation() -> None:
    zoo = embedded_prompts()
    for channels, act in ((1, "tanh"), (3, "gelu")):
        target = small_cnn(channels, 7, act)
        found = choose_prompts(target, zoo, 3)
        sources = {f"{zoo.name}:{entry.key}": entry for entry in zoo.entries}
        chosen = [sources[graph.source] for graph in found.graphs]
        assert [entry.properties["act"] for entry in chosen] == [act] * 3
        assert {entry.factory["channels_in"] for entry in chosen} == {channels}
        for dataset in {entry.properties["dataset"] for entry in chosen}:
            alike = [entry for entry in chosen if entry.properties["dataset"] == dataset]
            scores = [float(entry.properties["test_accuracy"]) for entry in alike]
            assert scores == sorted(scores, reverse=True)
        assert not found.notes


def test_missing_activation_is_noted() -> None:
    target = nn.Sequential(nn.Conv2d(1, 8, 5), nn.SELU())
    assert not activations(target)
    assert "activation" in choose_prompts(target, embedded_prompts()).notes[0]
    with pytest.raises(ZooError, match="no usable network"):
        choose_prompts(target, embedded_prompts().where(lambda _: False))


@pytest.mark.slow
def test_shipped_model_and_prompts_beat_the_default_on_digits() -> None:
    from sane_plugins.autoencoder import embedded_sane

    digits = load_task("digits", 28)
    prompts = choose_prompts(small_cnn(), embedded_prompts()).graphs
    done = initialize(small_cnn, digits, prompts, embedded_sane())
    after = dict.fromkeys(("sane", "prompt", "default", "default, classifier fitted"), 0.0)
    for row in done.rows:
        after[row.kind] = max(after.get(row.kind, 0.0), row.after or 0.0)
    assert done.chosen in ("sane", "prompt")
    assert after["sane"] > max(after["default"], after["default, classifier fitted"])
    x, y = digits.x_test, digits.y_test
    plain = small_cnn()
    assert accuracy(done.module, x, y) > 0.7 > accuracy(plain, x, y) + 0.4


@pytest.mark.parametrize("channels", [1, 3])
def test_prompts_for_another_width_have_seen_as_many_colours(channels: int) -> None:
    zoo = embedded_prompts()
    sources = {f"{zoo.name}:{entry.key}": entry for entry in zoo.entries}
    found = choose_prompts(wide_cnn(channels), zoo, 6)
    assert {sources[g.source].factory["channels_in"] for g in found.graphs} == {channels}


def test_prompts_from_a_file_are_matched_without_topology(task: Task, sane: SANE) -> None:
    other = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    done = initialize(network, task, [from_state_dict(other.state_dict(), "file")], sane, QUICK)
    assert not any(" 0% of" in note for note in done.notes)


def test_prompts_that_give_nothing_are_refused(task: Task, sane: SANE) -> None:
    """What took nothing from the prompts is a default initialisation, and must not be called SANE."""
    with pytest.raises(UsageError, match="none of its layers"):
        initialize(network, task, [from_module(nn.Embedding(9, 4))], sane, QUICK)


def test_defaults_are_selected_from_as_many_draws(task: Task, sane: SANE) -> None:
    options = InitializeOptions(candidates=4, keep=2)
    done = initialize(network, task, [from_module(network())], sane, options)
    kinds = [row.kind for row in done.rows]
    assert kinds.count("default, classifier fitted") == 4
    assert sum("scale" not in row.name for row in done.rows if row.kind == "sane") == 4
    tried = [row.kind for row in done.rows if row.curve]
    assert tried.count("default, classifier fitted") == 2
