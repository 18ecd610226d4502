"""Archives of torch.export: weights as they are, the program left out."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from sane_plugins import Host
from sane_plugins.errors import SourceError
from sane_plugins.formats import open_file, save_safetensors
from sane_plugins.weights import load_into

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """A network with shared weights, a view, and constants that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.small, self.other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
        self.other.weight = self.small.weight
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.scale = torch.full((2,), 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).mean((2, 3))
        return self.other(self.small(x)) * self.scale + self.passing + torch.tensor([1.0, 2.0])


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    torch.export.save(torch.export.export(network(), (torch.ones(1, 1, 5, 5),)), path)
    return path


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def same(graph, state: dict[str, torch.Tensor]) -> None:
    assert sorted(graph.state_dict()) == sorted(state)
    for key, tensor in graph.state_dict().items():
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor, state[key])


@pytest.mark.parametrize("name", ["net.pt2", "net.pt", "net"])
def test_weights_of_exported_programs_are_read(exported, name: str, tmp_path) -> None:
    (tmp_path / name).write_bytes(exported.read_bytes())
    graph = open_file(tmp_path / name)
    same(graph, network().state_dict())
    assert graph.container == "exported"
    assert len(graph.ties) == 1
    assert {key for key, why in graph.untouched.items() if "constant" in why} >= {"constants.scale"}
    assert graph.coverage == 1
    other = Net()
    load_into(other, graph)
    same(graph, other.state_dict())
    same(open_file(save_safetensors(graph, tmp_path / "o.safetensors")), network().state_dict())
    with pytest.raises(SourceError, match=r"program.*\.safetensors or \.pt"):
        Host.installed().save(graph, tmp_path / "other.pt2")


@pytest.mark.parametrize("layout", ["data/weights/model.pt", "serialized_state_dict.pt"])
def test_older_layouts_are_read(exported, layout: str, tmp_path) -> None:
    state = network().state_dict()
    kept = (
        {n: x for n, x in members(exported).items() if "weights" not in n} if "/" in layout else {}
    )
    path = write(tmp_path / "net.pt2", {**kept, layout: saved(state), "version": b"5.1"})
    same(open_file(path), state)


def test_a_tensor_that_was_pickled_is_counted(exported, tmp_path) -> None:
    content = members(exported)
    name = next(x for x in content if x.endswith("weights_config.json"))
    told = json.loads(content[name])
    entry = told["config"]["conv.bias"]
    entry["use_pickle"] = True
    content[name] = json.dumps(told).encode()
    content[f"{name.rpartition('/')[0]}/{entry['path_name']}"] = saved(torch.ones(2))
    graph = open_file(write(tmp_path / "net.pt2", content))
    assert graph.missed == {"conv.bias": 2}
    assert "pickles" in graph.untouched["conv.bias"]


@pytest.mark.parametrize(
    "change",
    [
        {"path_name": "../../version"},
        {"path_name": "nowhere"},
        {"path_name": 3},
        {"tensor_meta": {}},
        {"tensor_meta": None},
        {"sizes": [{"as_int": 10**12}]},
        {"sizes": [{"as_int": -2}]},
        {"sizes": [{"as_expr": {}}]},
        {"strides": [{"as_int": 2**62}]},
        {"strides": [{"as_int": -1}]},
        {"storage_offset": {"as_int": 9}},
        {"storage_offset": {"as_int": 2**62}},
        {"dtype": 8},
        {"dtype": "x"},
        {"layout": 1},
    ],
)
def test_tensors_that_reach_elsewhere_are_refused(exported, change, tmp_path) -> None:
    content = members(exported)
    name = next(x for x in content if x.endswith("weights_config.json"))
    told = json.loads(content[name])
    entry = told["config"]["conv.bias"]
    where = entry if {"path_name", "tensor_meta"} & change.keys() else entry["tensor_meta"]
    where.update(change)
    content[name] = json.dumps(told).encode()
    with pytest.raises(SourceError) as caught:
        open_file(write(tmp_path / "net.pt2", content)).state_dict()
    assert "\n" not in str(caught.value)


def test_of_several_programs_the_largest_is_read(exported, tmp_path) -> None:
    content = members(exported)
    root = next(iter(content)).partition("/")[0]
    small = {"w": torch.ones(1)}
    path = write(tmp_path / "n.pt2", {**content, f"{root}/data/weights/small.pt": saved(small)})
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo(f"{root}/data/weights/small.pt").file_size > 0
    graph = open_file(path)
    assert any("not read" in note for note in graph.notes)
