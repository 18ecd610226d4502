"""Folders and names of the hub: which file of them is read, and which of them are refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreignfiles import FOREIGN
from safetensors.torch import save_file
from torch import nn

from sane_plugins import Host
from sane_plugins.errors import SaneError, SourceError
from sane_plugins.formats import declared_architecture, files_read, locate, open_file, save_sharded
from sane_plugins.weights import from_module, tokenize

COMMIT = "0123456789abcdef" * 2 + "01234567"
BERT = {"architectures": ["BertModel"], "model_type": "bert"}
PYTORCH = """artifact_path: model
flavors:
  python_function:
    config: {}
    data: data
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.pytorch
    python_version: 3.11.7
  pytorch:
    code: null
    model_data: data
    pytorch_version: 2.3.1
mlflow_version: 2.14.1
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]'
  outputs: '[{"type": "tensor"}]'
"""


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).state_dict()


def write(folder: Path, *names: str, config: dict | None = None) -> Path:
    """Write the same small network under each name, and text under names of other files."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(weights(), path)
        elif name.endswith((".bin", ".pth", ".pt", ".ckpt")):
            torch.save(weights(), path)
        else:
            path.write_text("{}")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def as_in_the_cache(cache: Path, repository: str, *names: str, reference: str = "main") -> Path:
    """Write a network as huggingface_hub keeps it: blobs, and a snapshot that links to them."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / reference).write_text(COMMIT)
    snapshot = write(folder / "snapshots" / COMMIT, *names, config=BERT)
    (folder / "blobs").mkdir()
    for i, path in enumerate(sorted(x for x in snapshot.rglob("*") if x.is_file())):
        blob = folder / "blobs" / f"{i:064x}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return the folder of a cache that is in use."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def is_the_network(graph) -> None:
    assert {key: x.tolist() for key, x in graph.state_dict().items()} == {
        key: x.tolist() for key, x in weights().items()
    }


# Folders with one network


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin"], "pytorch_model.bin"),
        (["diffusion_pytorch_model.safetensors"], "diffusion_pytorch_model.safetensors"),
        (["open_clip_pytorch_model.bin", "open_clip_config.json"], "open_clip_pytorch_model.bin"),
        (["adapter_model.safetensors"], "adapter_model.safetensors"),
        (["model.ckpt", "hparams.yaml"], "model.ckpt"),
        (["consolidated.00.pth", "params.json"], "consolidated.00.pth"),
        # of one network in several forms the first of huggingface_hub's own order
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], "model.safetensors"),
        # as published: all-MiniLM-L6-v2 keeps the same network in further folders
        (
            ["model.safetensors", "1_Pooling/config.json", "onnx/model.onnx", "modules.json"],
            "model.safetensors",
        ),
        # as a trainer leaves it
        (["model.safetensors", "training_args.bin", "optimizer.pt"], "model.safetensors"),
        (["net.pth", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"], "net.pth"),
        (["consolidated.safetensors", "model.safetensors"], "model.safetensors"),
    ],
)
def test_a_folder_is_the_network_in_it(names: list[str], read: str, tmp_path) -> None:
    folder = write(tmp_path / "net", *names, "README.md", ".gitattributes")
    for source in (folder, str(folder), f"{folder}/"):
        assert locate(source).path.name == read
        is_the_network(open_file(source))
    assert tokenize(open_file(folder), 16).values.equal(
        tokenize(open_file(folder / read), 16).values
    )


def test_what_is_not_read_of_a_folder_is_told(tmp_path) -> None:
    folder = write(tmp_path, "model.safetensors", "pytorch_model.bin", "2_Dense/model.safetensors")
    (note,) = locate(folder).notes
    assert note == (
        "read from model.safetensors; not from pytorch_model.bin, 2_Dense/model.safetensors"
    )
    assert note in open_file(folder).notes


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.pth", "b.pth"], "a.pth, b.pth"),
        (
            ["model.safetensors", "open_clip_model.safetensors"],
            "model.safetensors, open_clip_model",
        ),
        ([f"{i}.ckpt" for i in range(9)], "5.ckpt and 3 more"),
    ],
)
def test_several_networks_are_named(names: list[str], told: str, tmp_path) -> None:
    with pytest.raises(SourceError, match="it holds several networks") as caught:
        open_file(write(tmp_path, *names))
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["weights", "net.model", "NET.PTH", "a.weights", "pickled"])
def test_of_a_folder_the_content_decides_too(name: str, tmp_path) -> None:
    for other in ("README.md", "a.json", "model.py", "empty"):
        (tmp_path / other).write_text("{}" * (other != "empty"))
    old = {"_use_new_zipfile_serialization": False} if name == "pickled" else {}
    torch.save(weights(), tmp_path / name, **old)
    is_the_network(open_file(tmp_path))


def test_an_empty_folder_and_a_zoo_are_told(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    zoo = write(tmp_path / "zoo", "index.jsonl", "weights-0.safetensors")
    for folder in (tmp_path / "empty", zoo):
        with pytest.raises(SourceError, match="no network lies in this folder"):
            Host.installed().open(folder)


def test_networks_below_a_folder_are_named(tmp_path) -> None:
    write(tmp_path, "model_index.json", "unet/model.safetensors", "vae/model.safetensors")
    with pytest.raises(SourceError, match=r"below it \(unet/model.safetensors, vae/model"):
        open_file(tmp_path)
    is_the_network(open_file(tmp_path / "unet"))


def test_folders_without_networks_are_left_to_others(tmp_path) -> None:
    assert locate(write(tmp_path, "README.md", "data/a.txt")) is None
    assert locate(tmp_path / "nothing") is None
    assert locate("torchvision:resnet18") is None
    (tmp_path / "index.jsonl").write_text("{}")  # a zoo
    assert locate(write(tmp_path, "weights-0.safetensors")) is None


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_link_out_of_the_folder_is_refused(is_sharded: bool, tmp_path) -> None:
    folder, elsewhere = tmp_path / "net", tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder.mkdir()
    if is_sharded:
        save_sharded(from_module(nn.Linear(30, 30)), elsewhere / "model.safetensors.index.json")
    else:
        write(elsewhere, "model.safetensors")
    for path in elsewhere.iterdir():
        (folder / path.name).symlink_to(path)
    with pytest.raises(SourceError, match="leads out of its folder"):
        open_file(folder)


# Torch checkpoints in several files


def shards(folder: Path, **files: dict[str, torch.Tensor]) -> Path:
    """Write checkpoints and their index, as transformers did before safetensors."""
    where = {}
    for name, state in files.items():
        file = f"pytorch_model-{name[1:]}-of-00002.bin"
        torch.save(state, folder / file)
        where |= dict.fromkeys(state, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def halves() -> dict[str, dict[str, torch.Tensor]]:
    state = weights()
    first = {key: x for key, x in state.items() if key[0] == "0"}
    return {"_00001": first, "_00002": {key: x for key, x in state.items() if key not in first}}


def test_torch_checkpoints_in_several_files(tmp_path) -> None:
    index = shards(tmp_path, **halves())
    for source in (index, tmp_path):
        graph = open_file(source)
        is_the_network(graph)
        assert [param.key for param in graph.params] == [*weights()]
        assert {path.name for path in files_read(graph)} == {x.name for x in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda map_: map_.update({"0.weight": "../x.bin"}), "plain names"),
        (lambda map_: map_.update({"0.weight": "/etc/passwd"}), "plain names"),
        (lambda map_: map_.update({"0.weight": "none.bin"}), "it does not exist"),
        (lambda map_: map_.update({"0.nothing": map_["0.weight"]}), "'0.nothing' is not in"),
        (lambda map_: map_.update({"0.weight": "link.bin"}), "leads out of its folder"),
        (lambda map_: map_.update({"more": "again.bin"}), "is in two files"),
        (lambda map_: map_.update({"more": 3}), "no index"),
        (lambda map_: map_.update({"more": "config.json"}), "."),
    ],
)
def test_odd_shards_of_checkpoints_are_one_sentence(
    change: Callable[[dict], object], said: str, tmp_path
) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    index = shards(folder, **halves())
    told = json.loads(index.read_text())
    change(told["weight_map"])
    index.write_text(json.dumps(told))
    torch.save({"more": torch.ones(1), "0.bias": torch.ones(1)}, folder / "again.bin")
    (folder / "config.json").write_text("{}")
    torch.save(weights(), tmp_path / "other.bin")
    (folder / "link.bin").symlink_to(tmp_path / "other.bin")
    with pytest.raises(SourceError, match=said) as caught:
        open_file(index)
    assert "\n" not in str(caught.value)


# The cache of Hugging Face


def test_names_of_the_hub_are_read_from_the_cache(cache: Path) -> None:
    folder = as_in_the_cache(cache, "org/name", "model.safetensors", "text/model.safetensors")
    snapshot = folder / "snapshots" / COMMIT
    for name in ("hf:org/name", "hf:org/name@main", f"hf:org/name@{COMMIT}", "hf:org/name/text"):
        is_the_network(open_file(name))
    for source in (folder, snapshot, snapshot / "text", "hf:org/name/text/model.safetensors"):
        is_the_network(open_file(source))
    graph = Host.installed().open("hf:org/name")
    assert "declared as BertModel (transformers, bert)" in graph.notes
    assert Path(graph.source) == snapshot / "model.safetensors"


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"HF_HUB_CACHE": "{}/a"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/a", "HF_HOME": "{}/b"}, "a"),
        ({"HF_HOME": "{}/b"}, "b/hub"),
        ({"XDG_CACHE_HOME": "{}/c"}, "c/huggingface/hub"),
        ({"HOME": "{}"}, ".cache/huggingface/hub"),
        ({"HF_HUB_CACHE": "{}/a", "HF_HOME": "{}/b", "HUGGINGFACE_HUB_CACHE": "{}/c"}, "a"),
        ({"HF_HOME": "~/d", "HOME": "{}"}, "d/hub"),
    ],
)
def test_the_cache_lies_where_its_variables_say(
    variables: dict[str, str], place: str, cache: Path, tmp_path, monkeypatch
) -> None:
    assert cache.parent == tmp_path
    monkeypatch.delenv("HF_HUB_CACHE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    as_in_the_cache(tmp_path / place, "gpt2", "model.safetensors")
    is_the_network(open_file("hf:gpt2"))


def test_revisions_have_names_of_their_own(cache: Path) -> None:
    folder = as_in_the_cache(cache, "org/name", "model.safetensors", reference="v1.0")
    is_the_network(open_file("hf:org/name@v1.0"))
    is_the_network(open_file(folder))  # it is the only one
    pull_request = folder / "refs" / "refs" / "pr" / "1"
    pull_request.parent.mkdir(parents=True)
    pull_request.write_text(COMMIT)
    is_the_network(open_file("hf:org/name@refs/pr/1"))
    with pytest.raises(SourceError, match=r"'main' is not in the cache .*v1.0.*hf download org/n"):
        open_file("hf:org/name")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("hf:org/other", "run hf download org/other."),
        ("hf:gpt2", "run hf download gpt2."),
        ("hf:org/other@v2", "run hf download org/other --revision v2."),
    ],
)
def test_what_the_cache_lacks_names_the_folder_and_the_command(
    name: str, command: str, cache: Path
) -> None:
    with pytest.raises(SourceError) as caught:
        Host.installed().open(name)
    assert str(cache) in str(caught.value)
    assert str(caught.value).endswith(command)


def test_a_repository_without_weights_names_the_command(cache: Path) -> None:
    as_in_the_cache(cache, "org/name", "tokenizer.json")
    with pytest.raises(SourceError, match=r"no weights of it.*run hf download org/name"):
        open_file("hf:org/name")
    with pytest.raises(SourceError, match=r"several networks \(hf:org/name\)"):
        open_file(cache)


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:/etc",
        "hf:../name",
        "hf:org/name/../x",
        "hf:org/name@../../x",
        "hf:org/name//x",
        "hf:org/name@..",
        "hf:org/name/a\\b",
        "hf:org/name@%2e%2e",
        "hf:org/name@main/..",
        "hf:a b",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str, cache: Path) -> None:
    as_in_the_cache(cache, "org/name", "model.safetensors")
    with pytest.raises(SourceError):
        open_file(name)


@pytest.mark.parametrize("reference", ["../../x", "/etc", "", "a/b", "x" * 5000])
def test_a_reference_leads_to_a_snapshot_only(reference: str, cache: Path) -> None:
    folder = as_in_the_cache(cache, "org/name", "model.safetensors")
    write(cache / "x", "model.safetensors")
    (folder / "refs" / "main").write_text(reference)
    with pytest.raises(SourceError, match="is not in the cache"):
        open_file("hf:org/name")


def test_a_snapshot_leads_to_its_own_blobs_only(cache: Path, tmp_path) -> None:
    folder = as_in_the_cache(cache, "org/name", "model.safetensors")
    other = as_in_the_cache(cache, "org/other", "model.safetensors")
    link = folder / "snapshots" / COMMIT / "model.safetensors"
    link.unlink()
    for blob in (other / "blobs" / f"{1:064x}", write(tmp_path / "x", "a.pt") / "a.pt"):
        link.symlink_to(blob)
        for source in ("hf:org/name", "hf:org/name/model.safetensors", folder):
            with pytest.raises(SourceError, match="leads out of its folder"):
                open_file(source)
        link.unlink()


# MLflow


def mlflow(folder: Path, text: str, *names: str) -> Path:
    write(folder, *names, "conda.yaml", "python_env.yaml")
    (folder / "MLmodel").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (PYTORCH, ["data/model.pth", "data/pickle_module_info.txt"]),
        ("flavors:\n  pytorch:\n    model_data: 'data'\n", ["data/model.pth"]),
        (
            'flavors:\n    pytorch:\n        "x": 1\n        model_data: "data"  # c\n',
            ["data/m.pt"],
        ),
        ("flavors:\n  transformers:\n    model_binary: model\n", ["model/model.safetensors"]),
        (
            "flavors:\n  sentence_transformers:\n    data: model.sentence_transformer\n",
            ["model.sentence_transformer/model.safetensors"],
        ),
        ("flavors:\n  python_function:\n    data: data\n", ["data/model.pth"]),
        ("flavors:\n  onnx:\n    data: net.safetensors\n", ["net.safetensors", "b.safetensors"]),
    ],
)
def test_an_mlflow_folder_is_its_network(text: str, names: list[str], tmp_path) -> None:
    graph = Host.installed().open(mlflow(tmp_path / "m", text, *names))
    is_the_network(graph)
    assert any(note.endswith("(MLflow)") for note in graph.notes)


def test_an_onnx_model_of_mlflow_is_read_by_its_plugin(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(torch.ones(3, 2).numpy(), "w")
    float_type = onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(x, float_type, None) for x in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    folder = mlflow(tmp_path, "flavors:\n  onnx:\n    data: model.onnx\n")
    onnx.save(helper.make_model(graph), folder / "model.onnx")
    assert Host.installed().open(folder).container == "onnx"


@pytest.mark.parametrize(
    ("place", "foreign"),
    [
        ("data: data", "data/model.keras"),
        ("data: data", "data/tf2model/saved_model.pb"),
        ("pickled_model: model.pkl", "model.pkl"),
    ],
)
def test_mlflow_of_other_libraries_is_named(place: str, foreign: str, tmp_path) -> None:
    folder = mlflow(tmp_path, f"flavors:\n  other:\n    {place}\n")
    kind = {
        "data/model.keras": "Keras `.keras`",
        "data/tf2model/saved_model.pb": "`saved_model.pb`",
        "model.pkl": "scikit-learn pickle",
    }[foreign]
    found, _, files = FOREIGN[kind]
    (folder / foreign).parent.mkdir(parents=True, exist_ok=True)
    (folder / foreign).write_bytes(next(iter(files.values())))
    with pytest.raises(SourceError, match=found):
        Host.installed().open(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flavors:\n  pytorch:\n    model_data: ../other\n", "plain names"),
        ("flavors:\n  pytorch:\n    model_data: /etc\n", "plain names"),
        ("flavors:\n  pytorch:\n    model_data: link\n", "leads out"),
        ("flavors:\n  pytorch:\n    model_data: empty\n", "no file of a network"),
        ("flavors:\n  pytorch:\n    model_data: nothing\n", "does not exist"),
        ("flavors:\n  pytorch: &a\n    model_data: *a\n", "names no file"),
        ("flavors: {}\n", "names no file"),
        ("", "names no file"),
        ("\x00\x01", "names no file"),
        (":" * 10_000, "names no file"),
        ("".join(f"{' ' * i}a:\n" for i in range(2000)), "names no file"),
    ],
)
def test_odd_mlflow_folders_are_one_sentence(text: str, said: str, tmp_path) -> None:
    write(tmp_path / "other", "model.pth")
    folder = mlflow(tmp_path / "m", text)
    (folder / "link").symlink_to(tmp_path / "other")
    (folder / "empty").mkdir()
    with pytest.raises(SourceError, match=said) as caught:
        open_file(folder)
    assert "\n" not in str(caught.value)


# What config.json says


@pytest.mark.parametrize(
    ("config", "name", "note"),
    [
        (
            {"architecture": "resnet18", "pretrained_cfg": {"tag": "a1_in1k"}},
            "resnet18.a1_in1k",
            "declared as resnet18.a1_in1k (timm)",
        ),
        ({"architecture": "resnet18"}, "resnet18", "declared as resnet18 (timm)"),
        (
            {"architectures": ["TimmWrapperModel"], "architecture": "vit_tiny.x"},
            "vit_tiny.x",
            "declared as vit_tiny.x (timm)",
        ),
        (BERT, None, "declared as BertModel (transformers, bert)"),
        ({"model_type": "bert"}, None, "declared as bert (transformers)"),
        ({"_class_name": "AutoencoderKL"}, None, "declared as AutoencoderKL (diffusers)"),
        ({"architectures": ["\x1b[31m" * 9]}, None, None),
        ({"architecture": 3, "architectures": {}, "pretrained_cfg": []}, None, None),
        ({"architectures": []}, None, None),
    ],
)
def test_config_json_declares_the_network(
    config: dict, name: str | None, note: str | None, tmp_path
) -> None:
    folder = write(tmp_path, "model.safetensors", config=config)
    assert declared_architecture(folder) == name
    assert declared_architecture(str(folder / "model.safetensors")) == name
    notes = [x for x in open_file(folder).notes if x.startswith("declared")]
    assert notes == ([note] if note else [])
    assert notes == [x for x in open_file(folder / "model.safetensors").notes if x in notes]


def test_an_adapter_says_whose_weights_are_not_there(tmp_path) -> None:
    write(tmp_path, "adapter_model.safetensors")
    config = {"base_model_name_or_path": "org/name", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert any("of org/name, whose own weights are not" in x for x in open_file(tmp_path).notes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"\xff" * 99),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text(json.dumps({"architecture": "x", "a": "b" * 2**21})),
        lambda path: path.write_text("[]"),
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.mkdir(),
    ],
)
def test_a_broken_config_stops_no_reading(damage: Callable[[Path], object], tmp_path) -> None:
    write(tmp_path, "model.safetensors")
    damage(tmp_path / "config.json")
    is_the_network(open_file(tmp_path))
    assert declared_architecture(tmp_path) is None


def test_every_error_is_one_of_ours(tmp_path) -> None:
    os.mkfifo(write(tmp_path / "net", "a.txt") / "model.safetensors")
    assert open_file(tmp_path / "net") is None
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(SaneError):
        Host.installed().open(tmp_path / "loop")
