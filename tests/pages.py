"""What the reader of a page has before its first block: small files with the names that the page uses."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from hubcache import keep
from safetensors.torch import save_file
from torch import nn

import sane_plugins
from sane_plugins import Host
from sane_plugins.architectures import FULL_TRUST, build, import_torchvision, resnet, small_cnn
from sane_plugins.weights import copy_module
from sane_plugins.zoo import Entry, Zoo, write_zoo

_BUILDER = """from torch import nn


def build(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d({channels}, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )
"""
_FACTORY = {"name": "small_cnn", "channels_in": 1, "classes": 10, "act": "relu", "dropout": 0.0}


def prepare(name: str, folder: Path) -> None:
    """Make the files of a page, named without its suffix from the root of the repository."""
    torch.manual_seed(0)
    if name in PAGES:
        PAGES[name](folder)


def readme(folder: Path) -> None:
    images(folder / "fashion.npz", classes=3)
    photos(folder)
    package(folder)
    checkpoint(folder / "my.pt", own())
    checkpoint(folder / "pruned.pt", pruned())
    factory = {"name": "my_package.models:build", "classes": 10}
    zoo(folder / "my_zoo", 2, factory)
    onnx_file(folder / "model.onnx")
    (folder / "trained").mkdir()
    for file in ("trained/1.pt", "trained/2.pt", "a.pt", "b.pt", "checkpoint.pt"):
        checkpoint(folder / file, small_cnn())
    save_file(small_cnn().state_dict(), folder / "digits.safetensors")
    published(folder / "zoo")


def tutorial(folder: Path) -> None:
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])


def embed(folder: Path) -> None:
    save_file(small_cnn().state_dict(), folder / "digits.safetensors")


def torch_pruning(folder: Path) -> None:
    import_torchvision()  # Torch-Pruning imports it
    colour_images(folder / "photos.npz", 32)
    checkpoint(folder / "dense.pt", resnet(depth=8))


def onnx_ir(folder: Path) -> None:
    package(folder)
    colour_images(folder / "photos.npz", 16, classes=3)
    dense = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), *own()[2:5], nn.Linear(16, 3))
    checkpoint(folder / "dense.pt", dense)


def lightning(_: Path) -> None:
    import_torchvision()  # Lightning's metrics import it


def colour_images(path: Path, size: int, classes: int = 10) -> None:
    """Write random images with labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, size, size, 3), dtype=np.uint8)
    labels = np.arange(120) % classes
    np.savez(
        path, x_train=images[:100], y_train=labels[:100], x_test=images[100:], y_test=labels[100:]
    )


def own_heads(folder: Path) -> None:
    zoo(folder / "my-zoo", 12, _FACTORY)
    checkpoint(folder / "checkpoint.pt", small_cnn())


def pruned_network(folder: Path) -> None:
    package(folder)
    photos(folder)
    checkpoint(folder / "pruned.pt", pruned())


def image_folder(folder: Path) -> None:
    import_torchvision()  # also one whose operators do not fit this torch
    photos(folder)
    for name in ("train", "val", "test"):
        shutil.copytree(folder / "photos", folder / "pets" / name)


def own_architecture(folder: Path) -> None:
    photos(folder)
    checkpoint(folder / "my.pt", own())
    for file in ("a.pt", "b.pt"):
        checkpoint(folder / file, small_cnn(classes=4))
    zoo(folder / "my-zoo", 3, {**_FACTORY, "classes": 4})


def keep_a_zoo(folder: Path) -> None:
    package(folder, channels=1)
    images(folder / "mnist.npz", classes=10)
    for run in ("net1", "net2"):
        (folder / "runs" / run).mkdir(parents=True)
        for epoch in (1, 2):
            checkpoint(folder / "runs" / run / f"cnn_epoch{epoch}.pt", own(channels=1))
    (folder / "published").mkdir()
    squeezenet = Host.installed().build("torchvision:squeezenet1_1", classes=10)
    checkpoint(folder / "published" / "squeezenet.pt", squeezenet)
    (folder / "old").mkdir()
    checkpoint(folder / "old" / "resnet20.pt", resnet(depth=20))
    (folder / "measured.csv").write_text("file,robustness\nnet1/cnn_epoch1.pt,0.5\n")


def pretrain(folder: Path) -> None:
    images(folder / "mnist.npz", classes=10)
    published(folder / "zoo")
    save_file(small_cnn().state_dict(), folder / "digits.safetensors")


def train_a_zoo(folder: Path) -> None:
    images(folder / "mnist.npz", classes=10)


def compare(folder: Path) -> None:
    module = resnet(depth=20)
    checkpoint(folder / "before.pt", module)
    save_file(module.state_dict(), folder / "same.safetensors")
    checkpoint(folder / "half.pt", copy_module(module).half())
    nn.init.normal_(module.linear.weight)
    checkpoint(folder / "after.pt", module)


def write_a_plugin(folder: Path) -> None:
    """Lay the entry points where pip would: beside the modules, which PYTHONPATH names."""
    info = folder / "sane_more-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sane-more\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(
        "[sane_plugins]\ncolumns = sane_columns\nlayered = sane_layered\nnorms = sane_norms\nnpz = sane_npz\n"
        "pool = sane_pool\nuniform = sane_uniform\n"
    )
    if not entry_points(group="pytest11", name="sane"):  # what is installed is older than the tree
        kit = 'pytest_plugins = ["sane_plugins.testing.pytest_plugin"]\n'
        (folder / "conftest.py").write_text(kit)


def model(folder: Path) -> None:
    """Lay a trained network where its reader has one."""
    shipped = Zoo.open(Path(sane_plugins.__file__).parent / "data" / "prompts")
    save_file(shipped.state_dict(shipped.entries[0]), folder / "model.safetensors")


def some_networks(folder: Path, name: str = "networks") -> None:
    (folder / name).mkdir(parents=True)
    model(folder)
    for each in ("a", "b"):
        shutil.copy(folder / "model.safetensors", folder / name / f"{each}.safetensors")


def llm(folder: Path) -> None:
    info = folder / "llm_sane-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-sane\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[llm]\nsane = llm_sane\n")
    model(folder)


def datasette(folder: Path) -> None:
    some_networks(folder)
    (folder / "plugins").mkdir()


def hatch(folder: Path) -> None:
    some_networks(folder, "my_networks")
    (folder / "my_networks" / "__init__.py").touch()


def kedro(folder: Path) -> None:
    package = folder / "src" / "my_pipeline"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (folder / "conf" / "base").mkdir(parents=True)
    (folder / "conf" / "local").mkdir()
    (folder / "conf" / "base" / "catalog.yml").write_text("{}\n")
    model(folder)


def hugging_face(folder: Path) -> None:
    """Keep a trained network and one tuned from it in the cache that `conftest` names."""
    shipped = Zoo.open(Path(sane_plugins.__file__).parent / "data" / "prompts")
    state = shipped.state_dict(shipped.entries[0])
    cache = folder / ".settings" / "hub"
    keep(cache, "org/base", state)
    save_file(state, folder / "tuned.safetensors")
    last = [*state][-2]
    keep(cache, "org/tuned", {**state, last: state[last] + 0.01 * torch.randn(state[last].shape)})


def check_networks(folder: Path) -> None:
    """Lay trained networks, which the package ships, in a folder and in a zoo."""
    shipped = Zoo.open(Path(sane_plugins.__file__).parent / "data" / "prompts")
    some = shipped.entries[:10]
    (folder / "runs").mkdir()
    for name, entry in zip("ab", some, strict=False):
        torch.save(shipped.state_dict(entry), folder / "runs" / f"{name}.pt")
    write_zoo(folder / "my-zoo", "my-zoo", ((x, shipped.state_dict(x)) for x in some))


def convert(folder: Path) -> None:
    checkpoint(folder / "checkpoint.pt", own())
    onnx_file(folder / "model.onnx")


def many_networks(folder: Path) -> None:
    pytest.importorskip("pyarrow")  # the extra parquet
    check_networks(folder)


def find_relatives(folder: Path) -> None:
    zoo(folder / "my-zoo", 3, _FACTORY)
    opened = Zoo.open(folder / "my-zoo")
    torch.save(opened.state_dict(opened.entries[0]), folder / "unknown.pt")


def count_the_cost(folder: Path) -> None:
    package(folder)
    checkpoint(folder / "checkpoint.pth", resnet())
    onnx_file(folder / "model.onnx")
    (folder / "runs").mkdir()
    checkpoint(folder / "runs" / "1.pt", own())


PAGES: dict[str, Callable[[Path], None]] = {
    "README": readme,
    "docs/tutorial/first-initialisation": tutorial,
    "docs/how-to/compare-two-checkpoints": compare,
    "docs/how-to/check-networks": check_networks,
    "docs/how-to/convert-a-network": convert,
    "docs/how-to/count-the-cost": count_the_cost,
    "docs/how-to/embed-in-a-host": embed,
    "docs/how-to/find-relatives": find_relatives,
    "docs/hosts/datasette": datasette,
    "docs/hosts/hatch": hatch,
    "docs/hosts/hugging_face": hugging_face,
    "docs/hosts/kedro": kedro,
    "docs/hosts/lightning": lightning,
    "docs/hosts/llm": llm,
    "docs/hosts/onnx_ir": onnx_ir,
    "docs/hosts/pytest": model,
    "docs/hosts/torch_pruning": torch_pruning,
    "docs/hosts/tox": some_networks,
    "docs/how-to/examine-an-installation": embed,
    "docs/how-to/fit-your-own-heads": own_heads,
    "docs/how-to/initialise-a-pruned-network": pruned_network,
    "docs/how-to/initialise-for-an-image-folder": image_folder,
    "docs/how-to/initialise-your-own-architecture": own_architecture,
    "docs/how-to/keep-a-zoo": keep_a_zoo,
    "docs/how-to/pretrain-on-your-zoo": pretrain,
    "docs/how-to/report-on-a-folder": check_networks,
    "docs/how-to/run-over-many-networks": many_networks,
    "docs/how-to/train-a-zoo": train_a_zoo,
    "docs/how-to/write-a-plugin": write_a_plugin,
}


# Files


def images(path: Path, classes: int) -> None:
    """Write a task of 60 grey images of 28 x 28 pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 28, 28), dtype=np.uint8)
    np.savez(path, x_train=pixels, y_train=np.arange(60) % classes)


def photos(folder: Path) -> None:
    """Write eight coloured images of 32 x 32 pixels of each of three classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")


def package(folder: Path, channels: int = 3) -> None:
    """Write `my_package.models:build`."""
    (folder / "my_package").mkdir()
    (folder / "my_package" / "models.py").write_text(_BUILDER.format(channels=channels))


def own(channels: int = 3, classes: int = 10) -> nn.Module:
    """Build the network of the reader, as `package` does."""
    scope: dict[str, Callable[..., nn.Module]] = {}
    exec(_BUILDER.format(channels=channels), scope)
    return scope["build"](classes)


def pruned() -> nn.Module:
    """Build the reader's network with half of its kernels' values zero."""
    network = own(classes=3)
    with torch.no_grad():
        network[0].weight *= torch.rand_like(network[0].weight) < 0.5
    return network


def checkpoint(path: Path, network: nn.Module) -> None:
    """Save a state dict."""
    torch.save(network.state_dict(), path)


def zoo(folder: Path, networks: int, factory: dict[str, object]) -> None:
    """Write a zoo of untrained networks with made-up properties."""

    def items() -> Iterator[tuple[Entry, dict[str, torch.Tensor]]]:
        for i in range(networks):
            properties = {
                "test_accuracy": 0.5 + 0.4 * i / networks,
                "optimiser": ("sgd", "adam")[i % 2],
                "act": "relu",
                "finite": True,
            }
            entry = Entry(network=f"run{i}", checkpoint="1", factory=factory, properties=properties)
            yield entry, {k: x.clone() for k, x in build(factory, FULL_TRUST).state_dict().items()}

    write_zoo(folder, folder.name, items())


def published(path: Path) -> None:
    """Write a published zoo of three runs of two epochs: records beside one file of tensors."""
    records, tensors = [], {}
    for run in range(3):
        for epoch in (1, 2):
            record = {"model": f"run{run}", "epoch": epoch, "act": "relu", "p": 0.0}
            records.append({**record, "test_accuracy": 0.9, "finite": True})
            for key, value in small_cnn().state_dict().items():
                tensors[f"run{run}/{epoch}/{key}"] = value
    path.with_suffix(".json").write_text(json.dumps(records))
    save_file(tensors, path.with_suffix(".safetensors"))


def onnx_file(path: Path) -> None:
    """Write a model of one layer."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "weight")
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 4]), ("y", [1, 3]))
    ]
    node = helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)
    graph = helper.make_graph([node], "one layer", shapes[:1], shapes[1:], [weight])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
