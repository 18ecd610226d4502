"""Networks that take one image size, or none so small: told, or resized for, before any work."""

from importlib.util import find_spec

import numpy as np
import pytest
from torch import nn

from sane_plugins import Host
from sane_plugins.architectures import find_image_size, small_cnn, takes_image_size
from sane_plugins.cli.initialization.inputs import InputNames
from sane_plugins.cli.initialization.targets import resolve_network, resolve_target
from sane_plugins.errors import SourceError, UsageError
from sane_plugins.tasks import load_task

RNG = np.random.default_rng(0)
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


@pytest.fixture
def task(tmp_path):
    x = RNG.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "task.npz", x_train=x, y_train=np.arange(40) % 4)
    return load_task(tmp_path / "task.npz")


def flat(side: int) -> nn.Module:
    """Return a network for one size of images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 4))


def hungry() -> nn.Module:
    """Return a network whose strides leave nothing of small images."""
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 5), nn.MaxPool2d(3))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


class Branching(nn.Module):
    """A network that looks at its values, so that it cannot run without any."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = flat(64)

    def forward(self, x):
        return self.inner(x) if float(x.sum()) > -1e9 else x


def test_the_size_that_a_network_takes_is_found() -> None:
    assert find_image_size(flat(32), 3, 4, (32, 32)) == (32, 32)
    assert find_image_size(flat(28), 3, 4, (32, 32)) == (28, 28)
    assert find_image_size(flat(224), 3, 4, (20, 32)) == (224, 224)
    assert find_image_size(Branching(), 3, 4, (64, 64)) == (64, 64)
    assert find_image_size(Branching(), 3, 4, (32, 32)) == (64, 64)
    assert find_image_size(small_cnn(3, 4), 3, 4, (64, 64)) == (32, 32)
    found = find_image_size(hungry(), 3, 4, (32, 32))
    assert found is not None
    assert 32 < found[0] <= 80
    assert find_image_size(flat(32), 3, 5, (32, 32)) is None  # another number of classes
    assert not takes_image_size(flat(32))


@pytest.mark.parametrize("make", [lambda: flat(64), hungry])
def test_images_are_resized_and_a_note_says_so(task, make, monkeypatch) -> None:
    monkeypatch.setattr(Host, "build", lambda *_: make())
    target = resolve_network(Host.installed(), "own:network", None, task, resize=True)
    assert target.task.size != (32, 32)
    assert any("images are resized from 32x32 to the" in note for note in target.notes)
    with pytest.raises(UsageError, match=r"--size 32: own:network does not take .* 32x32 .*--size"):
        resolve_network(Host.installed(), "own:network", None, task, resize=False)


def test_few_images_are_kept_at_a_large_size(task, monkeypatch) -> None:
    monkeypatch.setattr(Host, "build", lambda *_: flat(64))
    monkeypatch.setattr("sane_plugins.cli.initialization.fitting._MOST_RESIZED", 20 * 3 * 64 * 64)
    target = resolve_network(Host.installed(), "own:network", None, task, resize=True)
    assert len(target.task.y_train) == len(target.task.x_train) == 10
    assert any("10 of 32 training images" in note for note in target.notes)


@needs_timm
def test_a_vision_transformer_is_offered_for_the_images_size(task) -> None:
    host = Host.installed()
    target = resolve_network(host, "vit_tiny_patch16_224", None, task, resize=True)
    assert target.task.size == (224, 224)
    assert "timm:vit_tiny_patch16_224,size=32" in " ".join(target.notes)
    assert "49 times as long" in " ".join(target.notes)
    target = resolve_network(host, "vit_tiny_patch16_224,size=32", None, task, resize=True)
    assert target.task.size == (32, 32)
    assert not target.notes
    with pytest.raises(UsageError, match=r"--size 224.*timm:vit_tiny_patch16_224,size=32"):
        resolve_network(host, "timm:vit_tiny_patch16_224", None, task, resize=False)
    for name in ("resnet10t,size=32", "torchvision:squeezenet1_1,size=32"):
        with pytest.raises(UsageError, match="built for one image size"):
            host.build(name, 4)
    with pytest.raises(SourceError, match="cannot be built for images of 33 pixels"):
        host.build("torchvision:vit_b_16,size=33", 4)


@pytest.mark.parametrize(("model", "side"), [("small-cnn", 32), ("own:network", 64)])
def test_a_size_is_chosen_for_images_of_several(tmp_path, monkeypatch, model, side) -> None:
    image = pytest.importorskip("PIL.Image")
    for c in "ab":
        (tmp_path / "set" / c).mkdir(parents=True)
        for i in range(6):
            pixels = RNG.integers(0, 255, (40 + i, 90, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "set" / c / f"{i}.png")
    monkeypatch.setattr(
        Host,
        "build",
        lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)),
    )
    names = InputNames(
        model=model,
        factory=None,
        task=str(tmp_path / "set"),
        size=None,
        prompts=(),
        sane=None,
        sampler="kde",
    )
    target = resolve_target(Host.installed(), names)
    assert target.task.size == (side, side)
    told = f"(usually 43 pixels) and are resized to {side}x{side}: --size"
    assert told in " ".join(target.notes)
    assert len([note for note in target.notes if "resized" in note]) == 1
    direct = load_task(tmp_path / "set", side)
    assert (direct.x_train - target.task.x_train).abs().max() < 1e-5


@needs_timm
def test_a_bare_name_is_torchvisions_or_else_timms(task) -> None:
    host = Host.installed()
    for name, library in (("resnet18", "torchvision"), ("convnext_atto", "timm")):
        assert type(host.build(name, 3)).__module__.startswith(library)
        assert host.open(name).source == f"{library}:{name}"
    target = resolve_network(host, "resnet18", None, task, resize=True)
    assert "resnet18 is torchvision's; write timm:resnet18 for the other" in target.notes
    target = resolve_network(host, "resnet10t", None, task, resize=True)
    assert target.name == "timm:resnet10t"
    assert not target.notes
    with pytest.raises(SourceError, match=r"no such network.*did you mean convnext_atto"):
        host.build("convnext_attoo")


def test_the_library_of_a_name_is_told_where_it_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr("sane_timm.find_spec", lambda _: None)
    with pytest.raises(SourceError, match=r"a network of timm; run pip install"):
        Host.installed().build("convnext_atto")
