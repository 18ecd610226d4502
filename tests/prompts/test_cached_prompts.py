"""Networks in torch's and Hugging Face's caches are found, and what is known of them is told."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from sane_plugins.architectures import build
from sane_plugins.errors import UsageError
from sane_plugins.grafting import Preparation
from sane_plugins.host import Host
from sane_plugins.prompts import cached_prompts, class_notes, imagenet_classes
from sane_plugins.weights import from_module

SIZE = 80_000  # values of the target


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.installed()


@pytest.fixture
def caches(tmp_path, monkeypatch) -> Path:
    """Return a folder in which both caches lie, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    return tmp_path


def _network(depth: int = 8) -> nn.Module:
    return build({"name": "resnet", "depth": depth, "width": 8, "classes": 3})


def _in_torch_cache(folder: Path, name: str, module: nn.Module) -> Path:
    checkpoints = folder / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), checkpoints / name)
    return checkpoints / name


def _on_hub(host: Host, folder: Path, name: str, module: nn.Module, **files: object) -> str:
    repository = folder / "hf" / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    host.save(from_module(module), snapshot / "model.safetensors")
    for key, value in files.items():
        (snapshot / f"{key}.json").write_text(json.dumps(value))
    return f"hf:{name}"


@pytest.mark.usefixtures("caches")
def test_empty_caches_are_told_in_one_sentence(host) -> None:
    with pytest.raises(UsageError, match="0 networks lie in"):
        cached_prompts(host.prompt_network, SIZE)


def test_networks_that_run_are_found_the_nearest_in_size_first(host, caches) -> None:
    _in_torch_cache(caches, "mine.pth", _network(20))
    name = _on_hub(host, caches, "me/net", _network())
    _on_hub(host, caches, "me/text", nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)))
    broken = _in_torch_cache(caches, "broken.pth", _network())
    broken.write_bytes(broken.read_bytes()[:100])
    found = cached_prompts(host.prompt_network, SIZE)
    assert [Path(x.info.name).name for x in found.networks] == ["mine.pth", Path(name).name]
    assert [x.build()(torch.zeros(1, 3, 8, 8)).shape for x in found.networks] == [(1, 3)] * 2
    text = "; ".join(found.notes)
    assert "broken.pth (" in text and "could not be read" in text
    assert "hf:me/text are no image networks" in text
    assert cached_prompts(host.prompt_network, 10).networks[0].info.name == name


TIMM = {
    "architecture": "resnet8",
    "num_classes": 3,
    "label_names": ["n02123045", "b", "c"],
    "label_descriptions": {"n02123045": "tabby, tabby cat"},
    "pretrained_cfg": {
        "license": "mit",
        "input_size": [3, 48, 40],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    },
}


def test_what_timm_writes_beside_weights_is_known(host, caches) -> None:
    name = _on_hub(host, caches, "me/net", _network(), config=TIMM)
    info = host.prompt_network(name).info
    assert info.classes == ("tabby, tabby cat", "b", "c")
    expected = Preparation(mean=(0.5,) * 3, deviation=(0.25,) * 3, size=(48, 40))
    assert (info.licence, info.preparation) == ("mit", expected)


def test_what_transformers_writes_beside_weights_is_known(host, caches) -> None:
    name = _on_hub(
        host,
        caches,
        "me/net",
        _network(),
        config={"id2label": {"1": "dog", "0": "cat"}},
        preprocessor_config={
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [1, 1, 1],
            "size": {"shortest_edge": 32},
        },
    )
    info = host.prompt_network(name).info
    assert info.classes == ("cat", "dog")
    assert info.preparation == Preparation(mean=(0.1, 0.2, 0.3), deviation=(1,) * 3, size=(32, 32))


def test_a_network_of_imagenet_is_known_by_timms_tag(host, caches) -> None:
    published = {"num_classes": 1000, "tag": "a1_in1k"}
    config = {"architecture": "resnet8", "pretrained_cfg": published}
    name = _on_hub(host, caches, "me/net", _network(), config=config)
    info = host.prompt_network(name).info
    assert (info.task, info.classes) == ("ImageNet-1k", imagenet_classes())


@pytest.mark.hostile
@pytest.mark.parametrize(
    "config",
    [
        [],
        {"id2label": {"0": 3}, "pretrained_cfg": 3, "label_names": "abc"},
        {"id2label": [1], "pretrained_cfg": {"mean": [1], "std": [0], "input_size": [3, 8, 8]}},
        {"label_names": ["a" * 10_000], "pretrained_cfg": {"input_size": [3, "8", 8]}},
        {"label_names": [["a"]], "pretrained_cfg": {"mean": "abc", "std": "abc"}},
        {"id2label": {str(i): "LABEL_0" for i in range(3)}},
        {"pretrained_cfg": {"mean": [True], "std": [1], "input_size": [3, 0, 8], "license": []}},
    ],
)
def test_a_strangers_settings_are_ignored_where_they_are_wrong(host, caches, config) -> None:
    name = _on_hub(host, caches, "me/net", _network(), config=config)
    info = host.prompt_network(name).info
    assert (info.classes, info.preparation, info.licence) == ((), None, "")


def test_a_file_of_torchvision_is_known_by_its_name(host, caches) -> None:
    if not find_spec("torchvision"):
        pytest.skip("needs torchvision")
    models = pytest.importorskip("sane_torchvision").import_torchvision().models
    path = _in_torch_cache(caches, "squeezenet1_1-b8a52dc0.pth", models.squeezenet1_1())
    info = host.prompt_network(str(path)).info
    assert (info.task, len(info.classes)) == ("ImageNet-1k", 1000)
    assert info.preparation.size == (224, 224)
    (note,) = class_notes([info], ("goldfish", "shark-like"))
    assert "trained on ImageNet-1k" in note
    assert "1 of the task's 2 classes (goldfish) is among its 1,000" in note
