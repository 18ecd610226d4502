"""Zoo training: many networks at once become what each becomes alone."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import sane_torchvision
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.functional import cross_entropy

from sane_plugins.architectures import build
from sane_plugins.architectures.families import ARCHITECTURES
from sane_plugins.cli.main import main
from sane_plugins.errors import SaneError, SourceError, UsageError
from sane_plugins.progress import Progress
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.tasks import load_task
from sane_plugins.weights import detokenize, from_module, tokenize
from sane_plugins.zoo import Zoo
from sane_plugins.zoo_training import (
    HyperparameterRanges,
    Hyperparameters,
    Schedule,
    TrainingImages,
    ZooOptions,
    build_initialized,
    train_zoo,
)
from sane_plugins.zoo_training.group_trainer import GroupTrainer
from sane_plugins.zoo_training.hyperparameters import draw_hyperparameters
from sane_plugins.zoo_training.training_images import channels_last

SHAPES = [
    ("small_cnn", {}, (1, 28)),
    ("small_cnn", {}, (3, 32)),
    ("wide_cnn", {}, (1, 28)),
    ("mlp", {"size": 12}, (2, 12)),
    ("resnet", {"depth": 8, "width": 4}, (1, 16)),
    ("resnet", {"depth": 8, "width": 4, "shortcut": "conv"}, (3, 9)),
    ("vit", {"size": 14}, (1, 14)),
]


def some_images(channels: int = 1, size: int = 28, number: int = 96) -> TrainingImages:
    """Images of which each class is brighter in another place."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.randint(4, (number,), generator=rng)
    images = torch.randn(number, channels, size, size, generator=rng)
    for label in range(4):
        images[labels == label, :, 2 * label : 2 * label + 3] += 2.0
    return TrainingImages(x_train=images, y_train=labels, x_test=images[:40], y_test=labels[:40])


def schedule(device: str = "cpu", epochs: int = 2) -> Schedule:
    return Schedule(
        epochs=epochs,
        batch=32,
        keep=(0, epochs),
        measured=40,
        seed=5,
        save_every=None,
        device=device,
    )


def draw(opt: str, lr: float, seed: int, p: float = 0.0, act: str = "tanh") -> Hyperparameters:
    return Hyperparameters(act=act, init="default", opt=opt, lr=lr, wd=1e-3, p=p, seed=seed)


DRAWS = (draw("sgd", 0.01, 1), draw("sgd", 0.05, 2), draw("adam", 0.001, 3), draw("adam", 0.01, 4))


def factory(name: str, settings: dict, channels: int = 1, p: float = 0.0) -> dict:
    given = {"channels_in": channels, "classes": 4, "act": "tanh", "dropout": p}
    return {"name": name, **given, **settings}


def trained(group: GroupTrainer, folder: Path) -> list[dict[str, torch.Tensor]]:
    """Return the networks of a group after training."""
    state = folder / f"{len(list(folder.iterdir()))}.safetensors"
    for _ in group.run(state, "told"):
        pass
    stack = group.stack
    return [stack.state_dict(i, stack.flat, stack.buffers) for i in range(stack.count)]


def alone(
    one: Hyperparameters, made: dict, images: TrainingImages, told: Schedule
) -> dict[str, torch.Tensor]:
    """Train one network as anyone would."""
    network = build_initialized(one, made).train()
    kind = torch.optim.Adam if one.opt == "adam" else torch.optim.SGD
    more = {} if one.opt == "adam" else {"momentum": 0.9}
    optimizer = kind(network.parameters(), one.lr, weight_decay=one.wd, **more)
    for epoch in range(told.epochs):
        for rows in told.order(epoch, len(images.y_train)).split(told.batch):
            optimizer.zero_grad()
            cross_entropy(network(images.x_train[rows]), images.y_train[rows]).backward()
            optimizer.step()
    return network.state_dict()


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in other)


@pytest.mark.parametrize(("name", "settings", "shape"), SHAPES)
def test_networks_trained_together_become_what_they_become_alone(name, settings, shape, tmp_path):
    images, made = some_images(*shape), factory(name, settings, shape[0])
    together = trained(GroupTrainer(DRAWS, made, images, schedule()), tmp_path)
    for one, state in zip(DRAWS, together, strict=True):
        plain = alone(one, made, images, schedule())
        assert list(state) == list(plain)
        assert far(state, plain) < 5e-4


@pytest.mark.parametrize("name", ["small_cnn", "mlp", "vit"])
def test_a_network_does_not_depend_on_its_group_with_dropout_either(name, tmp_path):
    draws = [draw(one.opt, one.lr, one.seed, p=0.2) for one in DRAWS]
    images, made = some_images(), factory(name, {}, p=0.2)
    together = trained(GroupTrainer(draws, made, images, schedule()), tmp_path)
    for i, one in enumerate(draws):
        (single,) = trained(GroupTrainer([one], made, images, schedule()), tmp_path)
        assert far(together[i], single) < 5e-4
    without = trained(GroupTrainer(DRAWS, factory(name, {}), images, schedule()), tmp_path)
    assert far(together[0], without[0]) > 1e-3


def test_dropout_drops_its_share_and_differs_between_networks():
    made = factory("mlp", {"width": 200, "depth": 1}, p=0.2)
    draws = [draw("sgd", 0.1, seed, p=0.2) for seed in (1, 2)]
    stack = GroupTrainer(draws, made, some_images(), schedule()).stack
    for seed, stream in enumerate(stack.streams):
        stream.manual_seed(seed)
    dropout = stack.module[3].train()
    mask = dropout(torch.ones(64, 2, 200))
    assert mask.unique().tolist() == [0.0, 1.25]
    assert float((mask == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert not torch.equal(mask[:, 0], mask[:, 1])


def test_a_network_that_diverges_stops_and_harms_no_other(tmp_path):
    wild = draw("sgd", 1e30, 9)
    images, made = some_images(), factory("resnet", {"depth": 8, "width": 4})
    calm = trained(GroupTrainer(DRAWS[:2], made, images, schedule()), tmp_path)
    group = GroupTrainer((DRAWS[0], wild, DRAWS[1]), made, images, schedule())
    mixed = trained(group, tmp_path)
    assert far(mixed[0], calm[0]) < 5e-4
    assert far(mixed[2], calm[1]) < 5e-4
    assert [row["finite"] for row in group.measured[2]] == [True, False, True]
    assert all(value.isfinite().all() for value in mixed[1].values())


def test_draws_are_those_of_the_published_zoos_and_more_networks_begin_with_the_same():
    many = draw_hyperparameters(400, HyperparameterRanges(), seed=1)
    assert draw_hyperparameters(5, HyperparameterRanges(), seed=1) == many[:5]
    assert {one.act for one in many} == {"relu", "tanh", "gelu", "sigmoid"}
    assert {one.wd for one in many} == {0.0, 1e-4, 1e-3}
    assert all(10**-2.5 <= one.lr <= 0.1 for one in many if one.opt == "sgd")
    assert all(10**-3.5 <= one.lr <= 0.01 for one in many if one.opt == "adam")


def test_an_initialisation_is_the_network_s_own_and_of_its_kind():
    made = factory("small_cnn", {})
    small = Hyperparameters(
        act="tanh", init="normal_small", opt="sgd", lr=0.1, wd=0.0, p=0.0, seed=4
    )
    torch.manual_seed(1)
    first = build_initialized(small, made).state_dict()
    torch.manual_seed(2)
    again = build_initialized(small, made).state_dict()
    assert far(first, again) == 0
    assert float(first["4.weight"].std()) == pytest.approx(0.1, rel=0.1)
    assert float(first["4.bias"].abs().max()) == 0


@pytest.mark.parametrize(("name", "settings", "shape"), SHAPES)
def test_every_architecture_makes_whole_tokens_and_keeps_its_function_when_permuted(
    name, settings, shape
):
    network = build(factory(name, settings, shape[0])).eval()
    graph = from_module(network)
    back = detokenize(tokenize(graph, 64), graph)
    assert all(torch.equal(dict(back.items())[key], value) for key, value in graph.items())
    spaces = permutation_groups(graph)
    assert spaces
    moved = permute(graph, random_permutations(spaces, torch.Generator().manual_seed(0)))
    other = build(factory(name, settings, shape[0])).eval()
    other.load_state_dict(moved.state_dict())
    images = some_images(*shape).x_test
    with torch.no_grad():
        assert torch.allclose(network(images), other(images), atol=1e-4)
    assert not all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters()))  # noqa: B905


def small(**changes) -> ZooOptions:
    given = {
        "architecture": "mlp",
        "settings": {"width": 8},
        "networks": 12,
        "epochs": 2,
        "batch": 8,
    }
    return ZooOptions(**{"name": "made", "dataset": "lines", **given, "keep": (0, 2), **changes})


def test_a_zoo_tells_all_of_its_networks(tmp_path):
    heard: list[Progress] = []
    zoo = train_zoo(some_images(), small(), tmp_path / "zoo", report=heard.append)
    assert len(zoo.networks) == 12
    assert [entry.checkpoint for entry in zoo.entries[:2]] == ["0", "2"]
    for entry in zoo.entries:
        told = entry.properties
        assert told["epoch"] == int(entry.checkpoint)
        assert told["gap"] == told["train_accuracy"] - told["test_accuracy"]
        assert told["dataset"] == "lines"
        assert {"act", "init", "opt", "lr", "wd", "p", "seed", "finite"} <= set(told)
        right = zoo.module(entry)(some_images().x_test).argmax(1) == some_images().y_test
        assert float(right.float().mean()) == pytest.approx(told["test_accuracy"])
    best = max(float(entry.properties["test_accuracy"]) for entry in zoo.entries)
    assert best > 0.9
    assert (heard[-1].done, heard[-1].total) == (12 * 2 * 12, 12 * 2 * 12)
    assert not (tmp_path / "zoo.state").exists()


@pytest.mark.slow
def test_processes_and_stops_change_no_byte(tmp_path):
    def folder(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    images = some_images()
    train_zoo(images, small(), tmp_path / "whole")
    train_zoo(images, small(), tmp_path / "apart", processes=2)
    assert folder("apart") == folder("whole")

    class StopError(Exception):
        pass

    told = count(1)

    def stop(_: Progress) -> None:
        if not next(told) % 25:
            raise StopError

    for _ in range(20):
        try:
            train_zoo(images, small(), tmp_path / "cut", resume=True, save_every=1, report=stop)
            break
        except StopError:
            continue
    assert folder("cut") == folder("whole")


def test_what_lies_there_is_not_lost(tmp_path):
    out = tmp_path / "zoo"
    train_zoo(some_images(), small(networks=2), out)
    with pytest.raises(UsageError, match="a zoo exists there already"):
        train_zoo(some_images(), small(networks=2), out)
    assert len(train_zoo(some_images(), small(networks=2), out, resume=True)) == 4
    assert len(train_zoo(some_images(), small(networks=1), out, force=True)) == 2

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_zoo(some_images(), small(), tmp_path / "cut", save_every=1, report=stop)
    with pytest.raises(UsageError, match="an interrupted run lies there"):
        train_zoo(some_images(), small(), tmp_path / "cut")
    with pytest.raises(UsageError, match="other options"):
        train_zoo(some_images(), small(seed=1), tmp_path / "cut", resume=True)


class Strange(nn.Module):
    """A network whose forward counts axes from the front."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"size": 9}}, "does not take these images"),
        ({"settings": {"breadth": 9}}, "does not take these arguments"),
        ({"architecture": "resnet", "settings": {"depth": 9}}, "its depth is 9"),
        ({"architecture": "nowhere:net", "settings": {}}, "cannot be imported"),
        ({"keep": (0, 3)}, "between 0 and 2"),
        ({"architecture": f"{__name__}:Strange", "settings": {}}, "axis of networks"),
        ({"architecture": f"{__name__}:odd", "settings": {}}, "it holds a Bilinear"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is(changes, said, tmp_path):
    with pytest.raises(SaneError, match=said):
        train_zoo(some_images(), small(**changes), tmp_path / "zoo")
    assert not list(tmp_path.iterdir())


def odd(**_: object) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Bilinear(784, 784, 4))


def command(arguments: Sequence[str]) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["zoo", "train", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_trains_a_zoo(tmp_path):
    out = tmp_path / "digits-zoo"
    few = ["--networks", "3", "--epochs", "1", "--images", "200", "--architecture", "mlp"]
    more = ["--set", "width=8", "--act", "relu", "--opt", "adam", "--keep", "0,1"]
    code, told, error = command(["-o", str(out), *few, *more, "--json"])
    assert code == 0, error
    assert json.loads(told)["checkpoints"] == 6
    entry = Zoo.open(out).entries[0]
    assert entry.factory["width"] == entry.factory["size"] == 8
    assert (entry.properties["act"], entry.properties["opt"]) == ("relu", "adam")
    assert entry.properties["dataset"] == "digits"
    assert command(["-o", str(out), *few])[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "width"], "it has no value"),
        (["--set", "act=relu"], "it is drawn"),
        (["--keep", "a"], "no list of whole numbers"),
        (["--act", "swish"], "one of relu, tanh, gelu, sigmoid"),
        (["--device", "cuda:99"], "cannot be used"),
        (["--task", "torchvision:MNIST"], "names no folder"),
        (["--task", "torchvision:Nothing:data"], "no data set"),
        (["--task", "torchvision:MNIST:nowhere"], "cannot be read"),
    ],
)
def test_the_command_tells_errors_in_one_sentence(arguments, said, tmp_path):
    if "torchvision" in arguments[-1]:
        need_torchvision()
    code, _, error = command(["-o", str(tmp_path / "zoo"), *arguments])
    assert code in (1, 2)
    assert said in error
    assert error.count("\n") == 1


def need_torchvision() -> None:
    """Skip where torchvision is absent; one that was built for another torch is imported all the same."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    sane_torchvision.import_torchvision()


def test_data_sets_that_torchvision_left_on_disk_are_read(tmp_path):
    need_torchvision()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, number in (("train", 30), ("t10k", 20)):
        images = rng.integers(0, 255, (number, 28, 28), dtype=np.uint8)
        labels = (np.arange(number) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim])
            shape = np.array(array.shape, dtype=">i4").tobytes()
            (raw / f"{part}-{name}-ubyte").write_bytes(head + shape + array.tobytes())
    task = load_task(f"torchvision:MNIST:{tmp_path}")
    assert task.x_train.shape == (30, 1, 28, 28)
    assert len(task.y_test) == 20
    assert len(task.classes) == 10


def test_every_name_builds_and_wrong_ones_are_told():
    for name in ARCHITECTURES:
        assert isinstance(build({"name": name}), nn.Module)
        assert isinstance(build({"name": name.replace("_", "-")}), nn.Module)
    with pytest.raises(SourceError, match="it takes channels_in, classes, act, dropout"):
        build({"name": "small_cnn", "width": 3})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_networks_become_the_same_on_a_gpu(tmp_path):
    images, made = some_images(), factory("small_cnn", {})
    here = trained(GroupTrainer(DRAWS, made, images, schedule()), tmp_path)
    there = trained(GroupTrainer(DRAWS, made, images.on("cuda"), schedule("cuda")), tmp_path)
    for one, other in zip(here, there, strict=True):
        assert far(one, {key: value.cpu() for key, value in other.items()}) < 1e-2


def test_channels_come_last_for_one_channel_too():
    images = channels_last(torch.randn(2, 1, 3, 4))
    assert images.stride() == (12, 1, 4, 1)
