"""Pretraining: what counts in losses, views keep functions, and a killed run resumes exactly."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from sane_plugins.architectures import FULL_TRUST, build, small_cnn
from sane_plugins.autoencoder import (
    SANEConfig,
    decode,
    encode,
    fingerprint,
    load_sane,
    read_metadata,
)
from sane_plugins.cli.main import main
from sane_plugins.errors import SourceError, UsageError, ZooError
from sane_plugins.pretraining import (
    PretrainOptions,
    World,
    draw_curves,
    log_path,
    paper_preset,
    pretrain,
    read_log,
    state_path,
)
from sane_plugins.pretraining.losses import masked_mse, masked_variance, nt_xent
from sane_plugins.pretraining.permuted_dataset import build_datasets
from sane_plugins.pretraining.view_batch import draw_windows
from sane_plugins.progress import silent
from sane_plugins.weights import Scale, Tokens, detokenize, undo_scale
from sane_plugins.zoo import Entry, Zoo, write_zoo

TINY = SANEConfig(
    token_width=64, latent_width=16, model_width=32, heads=2, layers=1, window=16, halo=8
)
SHORT = PretrainOptions(steps=6, batch=4, views=2, bf16=False, log_every=2)
CNN = {"name": "small_cnn", "channels_in": 1, "classes": 10, "act": "relu", "dropout": 0.0}
MLP = {"name": "pretraining.test_pretrain:mlp"}
NORMED = {"name": "pretraining.test_pretrain:normed"}


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 10)
    )


def normed() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    for module in network:
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def make(folder: Path, name: str, factory, networks: int = 4) -> Zoo:
    """Write a zoo of random networks with two checkpoints each."""
    torch.manual_seed(0)
    write_zoo(
        folder / name,
        name,
        [
            (
                Entry(network=str(n), checkpoint=str(c), factory=factory, properties={"epoch": c}),
                build(factory, FULL_TRUST).state_dict(),
            )
            for n in range(networks)
            for c in range(2)
        ],
    )
    return Zoo.open(folder / name, FULL_TRUST)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Zoo:
    return make(tmp_path_factory.mktemp("zoos"), "cnn", CNN, 6)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, zoo) -> list[Zoo]:
    folder = tmp_path_factory.mktemp("mixed")
    return [zoo, make(folder, "mlp", MLP), make(folder, "normed", NORMED)]


def test_padding_does_not_count() -> None:
    target, mask = torch.zeros(1, 2, 4), torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0]]])
    wrong = torch.where(mask.bool(), 2.0, 99.0)
    assert masked_mse(wrong, target, mask) == 4.0
    junk = torch.where(mask.bool(), torch.randn(1, 2, 4), 99.0)
    assert masked_variance(junk, mask) == pytest.approx(
        junk[mask.bool()].var(correction=0).item(), rel=1e-5
    )


@pytest.mark.parametrize("factor", [1e-3, 1.0, 50.0])
def test_masked_normalisation_does_not_see_the_scale(factor: float) -> None:
    torch.manual_seed(0)
    target, predicted = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    mask = torch.rand(2, 5, 8) < 0.6

    def loss(scale: float) -> float:
        x, y = predicted * scale, target * scale
        return float(masked_mse(x, y, mask) / masked_variance(y, mask))

    assert loss(factor) == pytest.approx(loss(1.0), rel=1e-4)


@pytest.mark.parametrize("batch", [2, 3, 32])
def test_contrast_prefers_true_pairs_at_any_batch_size(batch: int) -> None:
    torch.manual_seed(0)
    views = torch.eye(batch)
    matched, mixed = nt_xent(views, views, 0.1), nt_xent(views, views.roll(1, 0), 0.1)
    assert matched < mixed
    assert matched == pytest.approx(math.log(1 + (2 * batch - 2) * math.exp(-10)), abs=1e-3)


def test_every_view_of_every_architecture_is_the_same_function(mixed) -> None:
    datasets = build_datasets(mixed, TINY, 3, torch.Generator().manual_seed(0), silent)
    assert [dataset.zoo for dataset in datasets] == [zoo.name for zoo in mixed]
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    for dataset, zoo in zip(datasets, mixed, strict=True):
        spans = dataset.template.token_layout(TINY.token_width).spans
        scale = Scale.from_side(torch.stack([dataset.side[3, start] for start, _ in spans]))
        expected = zoo.module(dataset.entries[3])(images)
        views = [dataset.all_tokens(torch.tensor([3]), torch.tensor([v]))[0] for v in range(4)]
        assert len({view.numpy().tobytes() for view in views}) == 4
        for values in views:
            cut = Tokens(values, dataset.mask, torch.zeros(len(values), 3))
            graph = undo_scale(detokenize(cut, dataset.template), scale)
            module = build(dataset.entries[3].factory, FULL_TRUST)
            module.load_state_dict(
                {k: graph.tensors.get(k, v) for k, v in module.state_dict().items()}
            )
            assert torch.allclose(module.eval()(images), expected, atol=1e-4)


def test_views_cost_no_copies_of_the_networks(zoo) -> None:
    few, many = (
        build_datasets([zoo], TINY, n, torch.Generator().manual_seed(0), silent)[0] for n in (1, 40)
    )
    assert few.values.shape == many.values.shape == (12, *few.mask.shape)
    assert len(many.permutations) <= 513


def test_a_window_is_where_the_batch_says_it_is(mixed) -> None:
    rng = torch.Generator().manual_seed(0)
    for dataset in build_datasets(mixed, TINY, 2, rng, silent):
        batch = draw_windows(dataset, 7, 9, rng)
        for view, found in (
            (torch.zeros(7, dtype=torch.long), batch.first),
            (batch.view, batch.second),
        ):
            whole = dataset.all_tokens(batch.network, view)
            for i, start in enumerate(batch.start):
                assert torch.equal(whole[i, start : start + 9], found[i])


class _KilledError(Exception):
    pass


def kill(event) -> None:
    if event.job == "pretrain" and event.done == 5:
        raise _KilledError


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"accumulate": 2, "bf16": True, "balance": "zoos"},
        {"loss": "masked"},
    ],
    ids=["default", "accumulated", "masked"],
)
@pytest.mark.parametrize("save_every", [0, 2, 4])
def test_killed_pretraining_resumes_to_the_same_bytes(mixed, tmp_path, chosen, save_every) -> None:
    options = replace(SHORT, save_every=save_every, **chosen)
    config = replace(TINY, scale="none") if "loss" in chosen else TINY
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    pretrain(mixed, config, options, whole)
    with pytest.raises(_KilledError):
        pretrain(mixed, config, options, cut, report=kill)
    assert not cut.exists()
    pretrain(mixed, config, options, cut, resume=True)
    assert cut.read_bytes() == whole.read_bytes()
    assert not state_path(cut).exists()
    lines = [[{**line, "seconds": 0} for line in read_log(log_path(x))] for x in (whole, cut)]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [2, 4, 6]


def test_a_kill_loses_at_most_the_step_under_way(zoo, tmp_path) -> None:
    options = replace(SHORT, save_every=1)
    out = tmp_path / "cut.safetensors"
    with pytest.raises(_KilledError):
        pretrain([zoo], TINY, options, out, report=kill)
    done = []
    pretrain(
        [zoo],
        TINY,
        options,
        out,
        resume=True,
        report=lambda event: done.append(event.done) if event.job == "pretrain" else None,
    )
    assert done == [6]


def test_a_batch_that_processes_cannot_share_is_one_sentence(zoo, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(World, "current", lambda: World(0, 3))
    with pytest.raises(UsageError, match="3 processes share it"):
        pretrain([zoo], TINY, SHORT, tmp_path / "a.safetensors")


def test_training_goes_on_from_a_sane_and_keeps_its_shape(zoo, tmp_path) -> None:
    first = pretrain([zoo], TINY, SHORT, tmp_path / "first")
    still = replace(SHORT, steps=1, lr=1e-12)
    on = pretrain([zoo], TINY, still, tmp_path / "on", start=first)
    anew = pretrain([zoo], TINY, still, tmp_path / "anew")
    before, after = first.state_dict(), on.state_dict()
    assert all(torch.allclose(after[key], value, atol=1e-6) for key, value in before.items())
    assert not all(torch.allclose(anew.state_dict()[k], v, atol=1e-6) for k, v in before.items())
    assert read_metadata(tmp_path / "on")["start"] == fingerprint(first)
    assert "start" not in read_metadata(tmp_path / "anew")
    with pytest.raises(UsageError, match="model_width"):
        pretrain([zoo], replace(TINY, model_width=64), still, tmp_path / "other", start=first)
    with pytest.raises(UsageError, match="not shown"):
        hidden = replace(still, hidden=0.5)
        pretrain([zoo], TINY, hidden, tmp_path / "other", start=first)


def test_the_command_goes_on_from_a_file(zoo, tmp_path) -> None:
    first, on = tmp_path / "first.safetensors", tmp_path / "on.safetensors"
    pretrain([zoo], TINY, SHORT, first)
    words = ["pretrain", str(zoo.folder), "--from", str(first), "-o", str(on), "--steps", "2"]
    done = CliRunner().invoke(main, [*words, "--batch", "2"])
    assert done.exit_code == 0, done.output
    assert load_sane(on).config == TINY
    wrong = CliRunner().invoke(main, [*words, "--force", "--width", "64"])
    assert wrong.exit_code == 2
    assert "model_width" in wrong.output


def test_another_run_is_not_resumed(mixed, tmp_path) -> None:
    out = tmp_path / "cut.safetensors"
    with pytest.raises(_KilledError):
        pretrain(mixed[:1], TINY, SHORT, out, report=kill)
    with pytest.raises(UsageError, match="another lr"):
        pretrain(mixed[:1], TINY, replace(SHORT, lr=1.0), out, resume=True)
    with pytest.raises(UsageError, match="another zoos"):
        pretrain(mixed[1:2], TINY, SHORT, out, resume=True)
    state_path(out).write_bytes(b"no")
    with pytest.raises(ZooError, match="delete the file"):
        pretrain(mixed[:1], TINY, SHORT, out, resume=True)


def test_a_cut_log_line_is_dropped_on_resuming(zoo, tmp_path) -> None:
    out = tmp_path / "cut.safetensors"
    with pytest.raises(_KilledError):
        pretrain([zoo], TINY, replace(SHORT, save_every=2), out, report=kill)
    with log_path(out).open("a") as file:
        file.write('{"step": 6, "val')
    pretrain([zoo], TINY, replace(SHORT, save_every=2), out, resume=True)
    lines = [json.loads(line) for line in log_path(out).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[0].keys() == {"step", "values", "side", "contrast", "lr", "seconds"}
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_curves_are_a_picture(zoo, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    pretrain([zoo], TINY, SHORT, tmp_path / "a.safetensors")
    draw_curves(log_path(tmp_path / "a.safetensors"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_diverged_run_stops_in_one_sentence(zoo, tmp_path) -> None:
    def broken(_batch, values, _side, _rng):
        return values.sum() * math.nan

    options = replace(SHORT, behaviour=1.0)
    with pytest.raises(ZooError, match="step 1: a loss is not finite"):
        pretrain([zoo], TINY, options, tmp_path / "a.safetensors", behaviour=broken)


def test_the_behaviour_term_learns_and_knows_its_windows(zoo, tmp_path) -> None:
    """A term that wants all values to be 3 brings them there."""
    seen = []

    def three(batch, values, side, _rng):
        assert values.shape[0] == side.shape[0] == 2 * len(batch.network)
        seen.append(float(values.detach().mean()))
        return ((values - 3) ** 2).mean()

    options = replace(SHORT, steps=40, behaviour=10.0, lr=1e-2)
    pretrain([zoo], TINY, options, tmp_path / "a.safetensors", behaviour=three)
    assert seen[-1] > 1.5 > 0.5 > abs(seen[0])
    with pytest.raises(UsageError, match="no images"):
        pretrain([zoo], TINY, options, tmp_path / "b.safetensors")


def test_pretraining_reconstructs_better_than_an_untrained_model(zoo, tmp_path) -> None:
    def error(steps: int) -> float:
        options = PretrainOptions(steps=steps, batch=8, views=1, lr=3e-3, bf16=False, gamma=0.0)
        model = pretrain([zoo], TINY, options, tmp_path / f"{steps}.safetensors")
        graph = zoo.graph(zoo.entries[0])
        back = decode(model, encode(model, graph).values, graph)
        return float(sum(((back.tensors[p.key] - t) ** 2).sum() for p, t in graph.items()))

    assert error(60) < 0.8 * error(1)


def small_paper(zoos: list[Zoo]) -> tuple[SANEConfig, PretrainOptions]:
    config, options = paper_preset(zoos)
    return replace(config, model_width=32, heads=2, layers=1), replace(options, steps=3, batch=4)


def test_the_published_preset_is_the_table(zoo) -> None:
    config, options = paper_preset([zoo])
    assert (config.token_width, config.latent_width, config.span) == (289, 128, 64)
    assert (config.model_width, config.heads, config.layers) == (1024, 8, 8)
    assert (options.lr, options.weight_decay, options.batch, options.steps) == (1e-4, 3e-9, 32, 50)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_published_sane_encodes_and_decodes_with_the_scale_of_its_zoo(tmp_path, channels) -> None:
    zoo = make(tmp_path, "cnn", {**CNN, "channels_in": channels}, 3)
    config, options = small_paper([zoo])
    pretrain([zoo], config, options, tmp_path / "a.safetensors")
    model = load_sane(tmp_path / "a.safetensors")
    graph = zoo.graph(zoo.entries[0])
    latents = encode(model, graph, precision="auto").values
    back = decode(model, latents, graph)
    assert latents.shape[1] == 128
    for param, tensor in graph.items():
        decoded = back.tensors[param.key]
        assert decoded.isfinite().all()
        assert decoded.std() < 3 * tensor.std()
    weights = torch.cat([graph.tensors["0.weight"].flatten(), graph.tensors["0.bias"]])
    assert model.get_buffer("zoo_scale")[0, 1] == pytest.approx(weights.std().item(), rel=0.1)


def test_learned_places_end_and_say_so(tmp_path) -> None:
    zoo = make(tmp_path, "cnn", CNN, 2)
    config, options = small_paper([zoo])
    model = pretrain([zoo], replace(config, scale="none"), options, tmp_path / "a.safetensors")
    wide = nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 2))
    from sane_plugins.weights import from_module

    with pytest.raises(SourceError, match="learned places of this SANE end"):
        encode(model, from_module(wide))


def test_a_zoo_wise_scale_takes_one_architecture(mixed, tmp_path) -> None:
    config, options = small_paper(mixed)
    with pytest.raises(UsageError, match="3 architectures"):
        pretrain(mixed, config, options, tmp_path / "a.safetensors")


ARGUMENTS = ["--steps", "2", "--batch", "4", "--width", "32", "--heads", "2", "--layers", "1"]


def run(zoo: Zoo, out: Path, *arguments: str):
    command = ["pretrain", str(zoo.weights.parent), "-o", str(out), *ARGUMENTS, *arguments]
    return CliRunner().invoke(main, command)


def test_the_command_takes_a_preset_and_changes_it(zoo, tmp_path) -> None:
    out = tmp_path / "a.safetensors"
    done = run(zoo, out, "--preset", "paper", "--lr", "1e-3", "--no-align", "--json")
    assert done.exit_code == 0, done.output
    told = read_metadata(out)
    assert told["config"]["token_width"] == 289 and told["config"]["model_width"] == 32
    assert told["recipe"]["lr"] == 1e-3 and told["recipe"]["aligned"] is False
    assert told["zoos"] == [{"name": "cnn", "networks": 6, "checkpoints": 12}]
    assert Path(json.loads(done.stdout)["log"]).exists()


def test_a_zoo_that_is_given_twice_is_told_once_with_how_often(zoo, tmp_path) -> None:
    out = tmp_path / "a.safetensors"
    assert run(zoo, out, str(zoo.weights.parent)).exit_code == 0
    assert read_metadata(out)["zoos"] == [
        {"name": "cnn", "networks": 6, "checkpoints": 12, "times": 2}
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--heads", "3"], "each head needs an equal share"),
        (["--behaviour", "1"], "no images"),
        (["--behaviour", "1", "--images", "other=digits"], "no zoo is called 'other'"),
        (["--behaviour", "1", "--images", "cnn"], "names no images"),
        (["--device", "nowhere"], "cannot be used"),
    ],
)
def test_wrong_options_are_one_sentence(zoo, tmp_path, arguments, sentence) -> None:
    done = run(zoo, tmp_path / "a.safetensors", *arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "a.safetensors").exists()


def test_the_command_runs_networks_on_images(zoo, tmp_path) -> None:
    out = tmp_path / "a.safetensors"
    done = run(zoo, out, "--behaviour", "0.1", "--images", "cnn=digits")
    assert done.exit_code == 0, done.output
    assert read_log(log_path(out))[-1]["behaviour"] > 0


def test_checkpoints_of_a_run_move_together(zoo) -> None:
    """The second checkpoint of a run is its first one, scaled: aligned, they must stay so."""
    state = small_cnn().state_dict()
    first = zoo.entries[0]
    pair = [
        (replace(first, network="a", checkpoint="0"), state),
        (replace(first, network="a", checkpoint="1"), {k: 2 * v for k, v in state.items()}),
    ]
    made = write_zoo(
        zoo.weights.parent.parent / "pair", "pair", [*pair, (first, zoo.state_dict(first))]
    )
    dataset = build_datasets([made], TINY, 1, torch.Generator().manual_seed(0), silent)[0]
    at = [entry.key for entry in dataset.entries].index
    assert torch.allclose(dataset.values[at("a/0")], dataset.values[at("a/1")], atol=1e-5)
