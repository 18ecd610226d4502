"""Forms of other libraries are named, with the command that converts them; no readable form is."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from foreignfiles import FOREIGN, field, make_foreign
from safetensors.torch import save_file
from torch import nn

from sane_plugins import Host
from sane_plugins.errors import SourceError
from sane_plugins.formats import foreign_form, open_file


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_form_is_named_with_its_command(name: str, tmp_path) -> None:
    path = make_foreign(name)(tmp_path)
    found, way_out, _ = FOREIGN[name]
    for open_ in (open_file, Host.installed().open):
        with pytest.raises(SourceError) as caught:
            open_(path)
        assert found in caught.value.found
        assert way_out.format(path) in caught.value.way_out
        assert str(caught.value).count("\n") == 0
        assert "{" not in str(caught.value).partition("python -c")[0]


# The others are told by the files beside them; MNN's has no mark of its own.
_ALONE = [name for name, (_, _, files) in FOREIGN.items() if len(files) == 1 and name != "MNN"]


@pytest.mark.parametrize("name", _ALONE)
def test_the_name_of_a_file_does_not_decide(name: str, tmp_path) -> None:
    path = make_foreign(name)(tmp_path)
    form = foreign_form(path)
    for other in ("weights", "weights.pt", "x.safetensors.index.json", "a.npz"):
        assert foreign_form(path.rename(tmp_path / other)).way_out.split("{")[0] in form.way_out
        path = tmp_path / other


def test_a_folder_with_a_foreign_file_alone_is_named_too(tmp_path) -> None:
    make_foreign("Keras `.keras`")(tmp_path)
    (tmp_path / "README.md").write_text("a model")
    with pytest.raises(SourceError, match="Keras model"):
        open_file(tmp_path)


def test_names_with_spaces_are_quoted(tmp_path) -> None:
    folder = tmp_path / "my nets"
    folder.mkdir()
    path = make_foreign("TFLite")(folder)
    with pytest.raises(SourceError, match=rf"--tflite '{path}' --output"):
        open_file(path)


def write_readable(folder: Path) -> list[Path]:
    """Write the forms that are read, and some files of no form."""
    state = {"a.weight": torch.ones(9, 9), **nn.Linear(3, 2).state_dict()}
    torch.save(state, folder / "zip.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.script(nn.Linear(2, 2)).save(str(folder / "script.jit"))
    save_file(state, folder / "a.safetensors")
    np.savez(folder / "a.npz", **{key: x.numpy() for key, x in state.items()})
    np.savez_compressed(folder / "b.npz", a=np.ones(3))
    np.save(folder / "a.npy", np.ones((2, 2), np.float32))
    (folder / "numbers.pkl").write_bytes(pickle.dumps({"a": np.ones(3)}))
    (folder / "text.md").write_text("# text\n" * 99)
    (folder / "config.json").write_text("{}")
    (folder / "empty").write_bytes(b"")
    (folder / "zeros").write_bytes(bytes(999))
    # whose headers' lengths begin as msgpack's maps, MXNet's arrays and GGML's marks do
    for length in (0xA181, 0xA582, 0x112, 0xD9DE, 0x8A80):
        header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
        data = length.to_bytes(8, "little") + header + bytes(4)
        (folder / f"{length}.safetensors").write_bytes(data)
    return sorted(folder.iterdir())


def test_what_is_read_is_no_foreign_form(tmp_path) -> None:
    assert [path.name for path in write_readable(tmp_path) if foreign_form(path)] == []
    assert foreign_form(tmp_path / "nothing") is None
    assert foreign_form(Path("a\0b")) is None
    assert foreign_form(Path("x" * 5000)) is None


def test_random_bytes_are_no_foreign_form(tmp_path) -> None:
    path, rng = tmp_path / "noise", np.random.default_rng(0)
    told = 0
    for _ in range(400):
        path.write_bytes(rng.bytes(64))
        told += foreign_form(path) is not None
    assert told <= 1


def test_real_files_are_no_foreign_forms(sane_data) -> None:
    suffixes = (".pt", ".pth", ".th", ".safetensors", ".onnx", ".jit")
    files = [x for x in sane_data.rglob("*") if x.suffix in suffixes and x.is_file()]
    assert files
    assert [str(x) for x in files if foreign_form(x)] == []


def test_an_onnx_model_needs_no_suffix(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    ends = [helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, None) for x in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))
    for producer in ("", "pytorch", "\n\x05x"):
        model.producer_name = producer
        for name in ("net", "net.model", "net.PB"):
            (tmp_path / name).write_bytes(model.SerializeToString())
            graph = Host.installed().open(tmp_path / name)
            assert (graph.container, graph.size) == ("onnx", 6)


def test_a_message_of_many_fields_is_not_walked_without_end(tmp_path) -> None:
    path = tmp_path / "a.pb"
    for data in (field(1, 1) * 30_000, b"\xff" * 70_000, b"\x0a" * 70_000, field(1, b"") * 30_000):
        path.write_bytes(data)
        assert foreign_form(path) is None
