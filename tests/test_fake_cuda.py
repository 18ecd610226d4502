"""The way over a GPU, without one: no tensor is made on or moved to another device by accident.

Each station runs on the stand-in of `card`, where operands of two devices are refused as on a real card, and
gives what the CPU gives. Tests with the marker `gpu` run the same stations on a real one.
"""

import ast
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from card import CardTensor, card
from click.testing import CliRunner
from graftnets import MobileNet, ResidualNet, trained
from tokennets import HandViT, TorchViT
from tokennets import trained as trained_tokens
from torch import nn

import sane_plugins
from sane_plugins.architectures import build, small_cnn, wide_cnn
from sane_plugins.autoencoder import SANE, SANEConfig, decode, embedded_sane, encode
from sane_plugins.cli.initialize import main as sane_init
from sane_plugins.cli.main import main as sane_plugins_command
from sane_plugins.features import EncodeOptions, embed
from sane_plugins.generation import (
    KDE,
    Denoiser,
    DenoiserConfig,
    Diffusion,
    Gaussian,
    SamplingContext,
    embedded_prompts,
    rescale,
)
from sane_plugins.generation.denoiser import denoise
from sane_plugins.grafting import (
    Preparation,
    PromptInfo,
    PromptNetwork,
    RegressionMethod,
    condition,
    find_classifier,
    fit_classifier,
    transfer_methods,
)
from sane_plugins.initialize import InitializeOptions, TrainOptions, initialize, train_epochs
from sane_plugins.inspection import survey_network, survey_record
from sane_plugins.pretraining import BehaviorLoss, PretrainOptions, pretrain
from sane_plugins.properties import PredictOptions, predict
from sane_plugins.tasks import SIZE, Task, accuracy, load_task, logits
from sane_plugins.weights import (
    apply_scale,
    detokenize,
    fit_scale,
    from_module,
    load_into,
    tokenize,
)
from sane_plugins.zoo import Entry, EvaluateOptions, Zoo, evaluate_zoo, write_zoo
from sane_plugins.zoo_training import Hyperparameters, Schedule, TrainingImages
from sane_plugins.zoo_training.group_trainer import GroupTrainer
from sane_plugins.zoo_training.network_trainer import NetworkTrainer, TrainerSettings
from sane_plugins.zoo_training.recipe import NetworkTraining, RecipeNetwork

CUDA = "cuda:0"
SMALL = SANEConfig(
    token_width=16, latent_width=8, model_width=24, heads=2, layers=1, window=8, halo=4
)


@pytest.fixture(params=["stand-in", pytest.param("card", marks=pytest.mark.gpu)])
def gpu(request) -> Iterator[str]:
    """Give the name of a device that is the stand-in, or a real card where there is one."""
    if request.param == "card":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield CUDA
    else:
        with card():
            yield CUDA


@pytest.fixture
def task() -> Task:
    return load_task("digits", 28).subset(120, torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(216, 10),
    )


def on(device: str, make: Callable[[], nn.Module] = network) -> nn.Module:
    return make().to(device)


def is_on_card(x: torch.Tensor) -> bool:
    return x.device == torch.device(CUDA)


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 2e-3) -> bool:
    return torch.allclose(one.detach().cpu(), other.detach().cpu(), atol=tolerance, rtol=tolerance)


class TestTheStandIn:
    """It refuses what a card refuses: the other tests here can fail."""

    @pytest.fixture(autouse=True)
    def gpu(self) -> Iterator[None]:
        with card():
            yield

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda x: x + torch.arange(4),
            lambda x: x @ torch.ones(4),
            lambda x: torch.where(torch.ones(4, dtype=torch.bool), x, x),
            lambda x: torch.cat([x, torch.zeros(1)]),
            lambda x: torch.arange(4)[x.long()],
            lambda x: nn.functional.linear(x, torch.ones(3, 4)),
            lambda x: nn.functional.cross_entropy(x[None], torch.zeros(1, dtype=torch.int64)),
            lambda x: x.index_add_(0, torch.arange(4), x),
            lambda x: x.numpy(),
            lambda x: x.normal_(generator=torch.Generator()),
            lambda _: torch.rand(4, generator=torch.Generator(CUDA)),
            lambda x: torch.rand(4, generator=torch.Generator(), device=x.device),
            lambda x: nn.Linear(4, 2)(x),
            lambda x: torch.zeros(4).add_(x),
        ],
    )
    def test_what_does_not_mix_is_refused(self, wrong) -> None:
        with pytest.raises((RuntimeError, TypeError)):
            wrong(torch.arange(4.0, device=CUDA))

    @pytest.mark.parametrize(
        "right",
        [
            lambda x: x + torch.tensor(1.0),
            lambda x: x[torch.arange(3)],
            lambda x: x[x > 1],
            lambda x: torch.zeros(4).to(x) + x,
            lambda x: torch.zeros_like(x) + x.new_zeros(4),
            lambda x: nn.functional.one_hot(x.long()),
            lambda x: x.clone().copy_(torch.zeros(4)),
            lambda x: torch.rand(4, generator=torch.Generator(x.device), device=x.device),
        ],
    )
    def test_what_mixes_lies_on_the_card(self, right) -> None:
        assert is_on_card(right(torch.arange(4.0, device=CUDA)))

    def test_values_are_those_of_the_cpu_and_gradients_flow(self) -> None:
        leaf = torch.tensor([1.0, 2.0], requires_grad=True)
        (leaf.to(CUDA) ** 2).sum().backward()
        assert leaf.grad.tolist() == [2, 4]
        assert not is_on_card(leaf.grad)
        network = on(CUDA)
        assert all(isinstance(x, CardTensor) for x in network.state_dict().values())
        assert next(network.parameters()) is network[0].weight


def test_tokens(gpu: str) -> None:
    graph = from_module(network())
    here, there = tokenize(graph, 16), tokenize(graph, 16, gpu)
    assert is_on_card(there.values)
    assert same(here.values, there.values, 0)
    back = detokenize(there, graph)
    assert all(same(back.tensors[p.key], tensor, 0) for p, tensor in graph.items())
    on_card = from_module(on(gpu))
    assert same(tokenize(on_card, 16, gpu).values, here.values, 0)
    assert all(
        is_on_card(x)
        for x in apply_scale(on_card, fit_scale(on_card)).tensors.values()
        if x.is_floating_point()
    )
    load_into(on(gpu), graph)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, scale="none"), replace(SMALL, tables=(999, 99, 999))],
    ids=["computed places", "no scale", "learned places"],
)
@pytest.mark.filterwarnings("ignore:.*autocast.*:UserWarning")
def test_encode_and_decode(gpu: str, precision, config: SANEConfig) -> None:
    torch.manual_seed(0)
    model, graph = SANE(config).eval(), from_module(network())
    here = encode(model, graph, precision="float32")
    model.to(gpu)
    there = encode(model, graph, precision=precision)
    assert is_on_card(there.values)
    assert same(here.values, there.values, 0.05)
    decoded = decode(model, there.values, graph)
    assert all(x.isfinite().all() for x in decoded.tensors.values())


@pytest.mark.parametrize(
    "sampler",
    [KDE(), KDE(prompt="token"), KDE(noise="shared"), Gaussian(), Diffusion()],
    ids=lambda x: type(x).__name__,
)
def test_samplers(gpu: str, sampler) -> None:
    sane = embedded_sane()
    prompts = torch.randn(3, 6, sane.config.latent_width)
    places, task = torch.rand(6, 34), torch.rand(SIZE)
    if isinstance(sampler, Diffusion):
        from sane_plugins.autoencoder import fingerprint

        places = _places()[:6]
        sampler = sampler.bound(SamplingContext(places, task, fingerprint(sane)))
    here = sampler(prompts, 2, torch.Generator().manual_seed(0))
    there = sampler(prompts.to(gpu), 2, torch.Generator().manual_seed(0))
    assert is_on_card(there)
    assert same(here, there)


def test_the_denoiser(gpu: str) -> None:
    torch.manual_seed(0)
    config = DenoiserConfig(latent=8, places=_places().shape[1], task=SIZE, sane="")
    model, places = Denoiser(config).eval(), _places()[:6]
    noisy, told = torch.randn(1, 6, 8), torch.rand(SIZE)
    here = denoise(model, noisy, places, told, 0.5, 2)
    there = denoise(model.to(gpu), *(x.to(gpu) for x in (noisy, places, told)), 0.5, 2)
    assert is_on_card(there)
    assert same(here, there)


def _places() -> torch.Tensor:
    config = embedded_sane().config
    layout = from_module(small_cnn()).token_layout(config.token_width)
    return config.positions(layout, 0, len(layout))


def test_conditioning_the_classifier_and_the_scale(gpu: str, task: Task) -> None:
    def fitted(device: str) -> list[torch.Tensor]:
        module, there = on(device), task.to(device)
        condition(module, there.x_train, 2, 16, torch.Generator().manual_seed(0))
        layer = find_classifier(module, there.x_train[:4])
        assert layer is not None
        fit_classifier(module, layer, there.x_train, there.y_train)
        reference = {key: 2 * value for key, value in module.state_dict().items()}
        keys = [key for key in reference if key.endswith("weight")]
        rescale(module, reference, keys, layer, there.x_train[:16])
        return [*module.state_dict().values()]

    there = fitted(gpu)
    assert all(map(is_on_card, there))
    assert all(map(same, fitted("cpu"), there))


def test_feature_regression(gpu: str, task: Task) -> None:
    def fitted(device: str) -> list[torch.Tensor]:
        torch.manual_seed(1)
        target = nn.Sequential(
            nn.Conv2d(1, 9, 3, 2, bias=False),
            nn.BatchNorm2d(9),
            nn.ReLU(),
            nn.Conv2d(9, 12, 3, groups=3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )
        source, module = network().eval(), target.to(device)
        prompt = PromptNetwork(
            graph=from_module(source), info=PromptInfo(name="source"), build=lambda: source
        )
        method = RegressionMethod(images=32, protect=4.0)
        method(module, prompt, task.to(device), torch.Generator().manual_seed(0))
        return [*module.state_dict().values()]

    there = fitted(gpu)
    assert all(map(is_on_card, there))
    assert all(map(same, fitted("cpu"), there))


def _noise(size: int) -> Task:
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.rand(6, 3, size, size, generator=rng), torch.arange(6) % 5
    return Task(
        name="noise",
        x_train=images,
        y_train=labels,
        x_test=images,
        y_test=labels,
        classes=tuple("abcde"),
        pixel_mean=(0.4,) * 3,
        pixel_deviation=(0.3,) * 3,
    )


def _transferred(
    device: str, method: str, source: nn.Module, build: Callable[[], nn.Module], size: int
) -> list[torch.Tensor]:
    """Return what a network of this device holds when a method has written a source into it."""
    lent = PromptNetwork(
        graph=from_module(source),
        info=PromptInfo(
            name="lent",
            preparation=Preparation(mean=(0.5,) * 3, deviation=(0.2,) * 3, size=(size, size)),
        ),
        build=lambda: deepcopy(source),
    )
    torch.manual_seed(0)
    module, rng = build().to(device), torch.Generator().manual_seed(0)
    transfer_methods()[method](module, lent, _noise(size).to(device), rng)
    return [*module.state_dict().values()]


@pytest.mark.parametrize("method", ["graft", "place"])
def test_grafting(gpu: str, method: str) -> None:
    source, build = trained(MobileNet()), partial(ResidualNet, (9, 14, 11))
    there = _transferred(gpu, method, source, build, 16)
    assert all(map(is_on_card, there))
    assert all(map(same, _transferred("cpu", method, source, build, 16), there))


@pytest.mark.parametrize("method", ["graft", "regression-protected", "mimetic"])
@pytest.mark.parametrize(
    ("source", "build"),
    [
        (TorchViT(depth=3), TorchViT),
        (TorchViT(width=30), TorchViT),
        (TorchViT(patch=16), partial(TorchViT, width=36, heads=2)),
        (HandViT(), partial(HandViT, post=True)),
        (HandViT(width=28), HandViT),
        (MobileNet(), TorchViT),
    ],
    ids=["deeper", "narrower", "wider", "split and post-norm", "split", "from convolutions"],
)
def test_transformers(gpu: str, method: str, source: nn.Module, build) -> None:
    source = trained_tokens(source)
    there = _transferred(gpu, method, source, build, 32)
    assert all(map(is_on_card, there))
    assert all(map(same, _transferred("cpu", method, source, build, 32), there))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_and_scoring(gpu: str, task: Task, optimizer) -> None:
    def scores(device: str) -> list[float]:
        module, there = on(device), task.to(device)
        rng = torch.Generator().manual_seed(0)
        curve = train_epochs(module, there, 1, TrainOptions(optimizer=optimizer), rng)
        return [*curve, accuracy(module, there.x_test, there.y_test)]

    assert scores(gpu) == pytest.approx(scores("cpu"), abs=0.2)
    assert is_on_card(logits(on(gpu), task.x_test[:2].to(gpu)))


@pytest.mark.filterwarnings("ignore:.*autocast.*:UserWarning")
def test_features_and_predictions(gpu: str) -> None:
    graph = from_module(small_cnn())
    for encoder in ("sane", "statistics"):
        for precision in ("float32", "bfloat16"):
            options = EncodeOptions(encoder=encoder, latents=True, precision=precision)
            here, there = embed(graph, options), embed(graph, replace(options, device=gpu))
            assert same(here.embedding, there.embedding, 0.2)
    here, there = predict(graph), predict(graph, options=PredictOptions(device=gpu))
    for name, estimate in here.items():
        if hasattr(estimate, "interval"):
            assert there[name].value == pytest.approx(
                estimate.value, abs=0.05 * (1 + abs(estimate.value))
            )
    predict(from_module(on(gpu, small_cnn)), options=PredictOptions(device=gpu))


def test_what_is_shown_of_a_network_on_the_card(gpu: str) -> None:
    here, there = (survey_record(survey_network(from_module(on(d)))) for d in ("cpu", gpu))
    assert there["layers"] == here["layers"]


@pytest.mark.parametrize(
    ("target", "more"),
    [
        (small_cnn, {"search": "bootstrap", "rounds": 2, "few_shot": 1, "few_shot_epochs": 1}),
        (small_cnn, {"sampler": Diffusion(steps=2), "classifier": "prompt", "scored": True}),
        (partial(wide_cnn, factor=2), {"sampler": Gaussian()}),
        (small_cnn, {"refine": 1}),
    ],
    ids=["bootstrap", "diffusion", "expansion", "refined"],
)
def test_initialising(gpu: str, task: Task, target, more) -> None:
    prompts = [zoo.graph(entry) for zoo in [embedded_prompts()] for entry in zoo.entries[:2]]
    options = InitializeOptions(candidates=1, keep=1, images=64, norm_batches=1, **more)
    there = initialize(target, task, prompts, embedded_sane(), replace(options, device=gpu))
    assert len({row.kind for row in there.rows}) > 3
    assert all(x.isfinite().all() for _, x in there.graph.items())


def _zoo(folder: Path, networks: int = 3) -> Zoo:
    factory = {"name": "small_cnn", "channels_in": 1, "classes": 10, "act": "relu", "dropout": 0.0}
    torch.manual_seed(0)
    entries = [
        (Entry(network=str(i), checkpoint="0", factory=factory, properties={}), build(factory))
        for i in range(networks)
    ]
    return write_zoo(folder, "zoo", [(entry, module.state_dict()) for entry, module in entries])


@pytest.mark.parametrize(
    ("scale", "loss", "more"),
    [
        ("tensor", "standardised", {"behaviour": 0.5}),
        ("none", "masked", {"gamma": 0.5, "accumulate": 2}),
        ("tensor", "standardised", {"hidden": 1.0, "canonical": True, "balance": "architectures"}),
        ("zoo", "standardised", {"noise": 0.1, "aligned": True}),
    ],
)
def test_pretraining(gpu: str, tmp_path: Path, scale, loss, more) -> None:
    zoo = _zoo(tmp_path / "zoo")
    config = replace(SMALL, scale=scale, token_width=64)
    options = PretrainOptions(steps=2, batch=4, views=1, bf16=False, log_every=1, loss=loss, **more)
    behaviour = BehaviorLoss({"zoo": torch.randn(8, 1, 28, 28)}) if "behaviour" in more else None
    model = pretrain(
        [zoo], config, replace(options, device=gpu), tmp_path / "sane", behaviour=behaviour
    )
    assert all(x.isfinite().all() for x in model.parameters())


def test_training_many_networks(gpu: str, tmp_path: Path) -> None:
    draws = tuple(
        Hyperparameters(act="tanh", init="default", opt=opt, lr=0.01, wd=1e-3, p=0.1, seed=i)
        for i, opt in enumerate(("sgd", "adam"))
    )
    factory = {"name": "small_cnn", "channels_in": 1, "classes": 4, "act": "tanh", "dropout": 0.1}
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(48, 1, 28, 28, generator=rng), torch.randint(4, (48,), generator=rng)
    images = TrainingImages(x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    schedule = Schedule(
        epochs=1, batch=16, keep=(0, 1), measured=8, seed=5, save_every=1, device=gpu
    )
    group = GroupTrainer(draws, factory, images.on(gpu), schedule)
    for _ in group.run(tmp_path / "state", "told"):
        pass
    assert is_on_card(group.stack.flat)
    assert group.stack.flat.isfinite().all()


def test_training_a_network_of_a_recipe(gpu: str, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(48, 3, 16, 16, generator=rng), torch.randint(4, (48,), generator=rng)
    images = TrainingImages(x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    settings = TrainerSettings(keep=(0, 1), measured=8, device=gpu, bf16=False, save_every=1)
    factory = {"name": "resnet", "depth": 8, "width": 4}
    training = NetworkTraining(epochs=1, batch=16, images=40, size=24)
    network = RecipeNetwork(name="resnet-made", task="made", factory=factory, training=training)
    given = (network, {**factory, "classes": 4}, images.on(gpu), settings)
    trainer = NetworkTrainer(*given)
    assert [*trainer.run(tmp_path / "state", "told")] == [1, 2]
    assert all(is_on_card(p) and p.isfinite().all() for p in trainer.module.parameters())
    assert 0 <= trainer.measured[1]["test_accuracy"] <= 1
    assert [*NetworkTrainer(*given).run(tmp_path / "state", "told")] == []


def test_measuring_a_zoo(gpu: str, tmp_path: Path, task: Task) -> None:
    zoo = _zoo(tmp_path / "zoo", 1)
    assert evaluate_zoo(zoo.folder, task, EvaluateOptions(images=20, device=gpu)).measured == 1


# In these rooms tensors of a device are at work, and a tensor that is made says where, or is drawn with
# numbers of the CPU, so that a seed means the same on every device. The others, and why they are not:
_ROOMS = ("autoencoder", "generation", "grafting", "initialize", "pretraining", "zoo_training")
_FACTORIES = {
    *("zeros", "ones", "empty", "full", "arange", "eye", "tensor", "as_tensor", "from_numpy"),
    *("linspace", "logspace", "rand", "randn", "randint", "randperm", "scalar_tensor"),
}
_ON_THE_CPU = {
    "indices, which may lie on the CPU whatever they index": {
        *("join_windows", "visible_tokens", "owned_tokens", "resize_to_target"),
        *("_concatenate_inputs", "_repeat_and_divide", "_source_of_channel", "matching_tokens"),
        *("_matching_slot_tokens", "_rows_by_factory", "World.rows", "draw_windows"),
        *("PermutedDataset.all_tokens", "_permutation_indices", "token_indices", "KDE.__call__"),
        *("_NetworkDecoder.decode", "draw_hidden"),
    },
    "single numbers, which go with tensors of any device": {"Diffusion.__call__", "_moments"},
    "of a module, which is moved as a whole": {"SANE.__init__"},
    "zoos and scales lie on the CPU": {
        *("_shared_scale", "_build_architecture_datasets", "_sample_dataset"),
    },
    "positions and channels that are drawn or found on the CPU, and moved or indexed with": {
        *("_batch_indices", "layer_fits", "FittingMode._fit", "_MapFitting._draw_hidden"),
        *("_Grid.of", "_Grid.codes", "_Bases.draw", "_fit_patches", "_write_places"),
    },
    "an activation or a module without weights is tried": {"_rectifies", "_is_identity"},
}
# Here weights are copied to the CPU, mapped there, and written back.
_CPU_PARTS = (
    *(
        "grafting/channel_maps",
        "grafting/kept_channels",
        "grafting/lending",
        "grafting/units",
        "grafting/transformers/branch_",
    ),
    *(f"grafting/transformers/{x}" for x in ("embedding_graft", "grids", "head_maps", "mimetic")),
    *(
        f"grafting/transformers/{x}"
        for x in ("stream_maps", "structure", "tracing", "transformer_")
    ),
)


def _factory_calls(room: str) -> Iterator[tuple[str, str]]:
    """Yield the function and the place of every call that makes a tensor and does not say where."""
    package = Path(sane_plugins.__file__).parent
    for path in sorted((package / room).rglob("*.py")):
        if path.relative_to(package).as_posix().startswith(_CPU_PARTS):
            continue
        for part in ast.parse(path.read_text()).body:
            methods = part.body if isinstance(part, ast.ClassDef) else [part]
            prefix = f"{part.name}." if isinstance(part, ast.ClassDef) else ""
            for method in (x for x in methods if isinstance(x, ast.FunctionDef)):
                for call in (x for x in ast.walk(method) if isinstance(x, ast.Call)):
                    given = {x.arg for x in call.keywords}
                    if _is_factory(call.func) and not given & {"device", "generator"}:
                        yield prefix + method.name, f"{path.relative_to(package)}:{call.lineno}"


def _is_factory(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in _FACTORIES
        and getattr(function.value, "id", "") == "torch"
    )


@pytest.mark.parametrize("room", _ROOMS)
def test_what_is_made_says_where(room: str) -> None:
    allowed = set().union(*_ON_THE_CPU.values())
    for function, place in _factory_calls(room):
        assert function in allowed, f"{place}: give device=, or list {function} with a reason"


def test_the_list_holds_nothing_else() -> None:
    found = {name for room in _ROOMS for name, _ in _factory_calls(room)}
    assert set().union(*_ON_THE_CPU.values()) <= found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "nonsense\x1b[31m"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "net.pt"],
        ["zoo", "evaluate", "zoo", "--task", "digits"],
        ["zoo", "train", "-o", "zoo"],
        ["pretrain", "zoo", "-o", "sane"],
        ["init", "-o", "out.pt"],
    ],
    ids=lambda x: x[0],
)
def test_a_device_that_is_not_there_is_one_sentence(
    device: str, arguments, tmp_path, monkeypatch
) -> None:
    command = sane_plugins_command
    if arguments[0] == "init":
        command, arguments = sane_init, arguments[1:]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, [*arguments, "--device", device])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: --device ")
    assert "leave it out to use the CPU" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
