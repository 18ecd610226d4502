"""Files that are small and ask for much: huge axes, deep JSON, many tensors, false ties, expanded views."""

from __future__ import annotations

import io
import json
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile.bounded import run
from torch import nn

from sane_plugins import features
from sane_plugins.errors import SaneError, SourceError, ZooError
from sane_plugins.formats import from_state_dict, open_file, save_network
from sane_plugins.inspection import layer_table, summary_lines, survey_network, survey_record
from sane_plugins.symmetry import alignment, permutation_groups
from sane_plugins.symmetry.channel_groups import ChannelGroups
from sane_plugins.weights import Layer, Param, WeightGraph, from_module, tokenize
from sane_plugins.zoo import Zoo

Stored = tuple[str, list[int], bytes]
GOOD: Stored = ("F32", [4, 4], np.arange(16, dtype="<f4").tobytes())
OTHER: Stored = ("F32", [4, 4], np.arange(16, 32, dtype="<f4").tobytes())
ONE: Stored = ("F32", [1], np.ones(1, "<f4").tobytes())
SECONDS = 6.0  # of the processor, on a busy machine; the files below took minutes or did not end


def write(path: Path, tensors: dict[str, Stored], entry: object = None) -> Path:
    """Write a safetensors file; `entry` is what our own metadata say."""
    header: dict[str, object] = {} if entry is None else {"__metadata__": {"sane": entry}}
    start = 0
    for key, (kind, shape, data) in tensors.items():
        offsets = [start, start := start + len(data)]
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
    return write_header(path, json.dumps(header).encode(), b"".join(x[2] for x in tensors.values()))


def write_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def write_index(folder: Path, index: bytes | dict, **files: dict[str, Stored]) -> Path:
    for name, tensors in files.items():
        write(folder / f"{name}.safetensors", tensors)
    path = folder / "net.safetensors.index.json"
    path.write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())
    return path


def array(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    """Return an .npy file of any shape."""
    file = io.BytesIO()
    head = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, head)
    return file.getvalue() + data


def write_zip(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_script(path: Path, content: object) -> Path:
    """Write a TorchScript archive around a pickle."""
    pickles = {"net/data.pkl": content, "net/constants.pkl": ()}
    return write_zip(path, {name: pickle.dumps(x, 2) for name, x in pickles.items()})


def refuse(source: object, said: str) -> str:
    """Assert that a source is refused soon and in one short sentence; return it."""
    start = time.process_time()
    with pytest.raises(SaneError, match=said) as caught:
        open_file(source) if isinstance(source, Path) else source()
    assert time.process_time() - start < SECONDS
    assert len(str(caught.value)) < 800
    return str(caught.value)


# tensors without values, whose other axes are huge


def write_empty(folder: Path, suffix: str) -> Path:
    """Write a network with a tensor (2^44, 0) beside a real one."""
    path, empty = folder / f"net{suffix}", ("F32", [2**44, 0], b"")
    if suffix == ".safetensors":
        return write(path, {"a.weight": GOOD, "b.weight": empty})
    if suffix == ".safetensors.index.json":
        where = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
        return write_index(
            folder, {"weight_map": where}, one={"a.weight": GOOD}, two={"b.weight": empty}
        )
    if suffix == ".npz":
        members = {"a.weight.npy": array((4, 4), GOOD[2]), "b.weight.npy": array((2**44, 0))}
        return write_zip(path, members)
    torch.save({"a.weight": torch.ones(4, 4), "b.weight": torch.empty(2**44, 0)}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors.index.json", ".npz", ".pt"])
def test_tensors_without_values_cost_nothing(suffix: str, tmp_path) -> None:
    start = time.process_time()
    graph = open_file(write_empty(tmp_path, suffix))
    survey = survey_network(graph)
    assert survey.parameters == 16
    assert survey.structure.outputs == 4
    assert features.embed(graph).tokens == 4
    assert time.process_time() - start < SECONDS


def test_commands_are_small_for_them_too(tmp_path) -> None:
    path = write_empty(tmp_path, ".safetensors")
    for command in ("inspect", "predict"):
        assert run(command, path).require_small().code == 0


def test_a_network_of_them_alone_is_none(tmp_path) -> None:
    (tmp_path / "net.npy").write_bytes(array((2**44, 0)))
    refuse(tmp_path / "net.npy", "no floating-point tensor")


@pytest.mark.parametrize("shape", [[2**62, 2**62, 0], [2**62] * 32 + [0], [0, 2**63 - 1, 2]])
def test_sizes_that_no_tensor_has_are_refused(shape: list[int], tmp_path) -> None:
    refuse(write(tmp_path / "net.safetensors", {"a": ("F32", shape, b"")}), "axes|shape")
    refuse(write_zip(tmp_path / "net.npz", {"a.npy": array(tuple(shape))}), "axes|shape")


def test_channels_of_nothing_change_no_places() -> None:
    weights = {"a.weight": torch.empty(2**44, 0), "b.weight": torch.ones(4, 4)}
    layers = [Layer(name="x", kind="input")] + [
        Layer(name=n, kind="linear", inputs=(x,), params=(param(f"{n}.weight", weights),))
        for n, x in (("a", "x"), ("b", "a"))
    ]
    graph = WeightGraph(source="net", layers=tuple(layers), tensors=weights)
    assert all(group.size <= 4 for group in permutation_groups(graph))


def param(key: str, tensors: dict[str, torch.Tensor]) -> Param:
    return Param(key=key, role="weight", shape=tuple(tensors[key].shape), dtype=torch.float32)


# many axes, long names


@pytest.mark.parametrize("axes", [33, 5_000, 3_000_000])
def test_tensors_of_many_axes_are_refused(axes: int, tmp_path) -> None:
    refuse(write(tmp_path / "net.safetensors", {"a": ("F32", [1] * axes, ONE[2])}), f"{axes} axes")
    if axes < 10_000:
        refuse(
            write_zip(tmp_path / "net.npz", {"a.npy": array((1,) * axes, ONE[2])}), "axes|broken"
        )
        many = torch.ones(1).reshape([1] * axes)
        torch.save({"a": many}, tmp_path / "net.pt")
        refuse(tmp_path / "net.pt", f"{axes} axes")
        refuse(lambda: from_state_dict({"a": many}, "state"), f"{axes} axes")
        module = nn.Module()
        module.weight = nn.Parameter(many)
        refuse(lambda: from_module(module), f"{axes} axes")


def test_thirty_two_axes_are_read(tmp_path) -> None:
    graph = open_file(
        write(tmp_path / "net.safetensors", {"a": ("F32", [4, 4] + [1] * 30, GOOD[2])})
    )
    assert survey_network(graph).parameters == 16
    features.embed(graph, features.EncodeOptions(encoder="statistics"))
    assert features.embed(graph).tokens == 4


def test_a_shape_in_a_message_is_short() -> None:
    graph = from_state_dict({"a": torch.ones(2)}, "state")
    refuse(lambda: graph.replace({"a": torch.ones(1).reshape([1] * 100_000)}), "100000 axes")


@pytest.mark.parametrize("name", ["a." * 500_000, "9" * 10_000, "1a" * 50_000])
def test_long_names_are_refused(name: str, tmp_path) -> None:
    refuse(write(tmp_path / "net.safetensors", {name: GOOD}), "characters")
    torch.save({name: torch.ones(2)}, tmp_path / "net.pt")
    refuse(tmp_path / "net.pt", "characters")
    torch.save({"a": torch.ones(2), name: [torch.ones(2)]}, tmp_path / "net.pt")
    refuse(tmp_path / "net.pt", "characters")


def test_odd_names_are_read(tmp_path) -> None:
    names = ["", ".", "..", "\0", "\ud800", "a.\ud800.b", "9" * 900, "1a" * 490]
    graph = open_file(write(tmp_path / "net.safetensors", dict.fromkeys(names, ONE)))
    assert {p.key for p in graph.params} == {*names}
    assert survey_network(graph).parameters == len(names)


# JSON


BRACKETS = [b"[" * 60_000_000, b"[" + b"[]," * 15_000_000 + b"[]]", b'{"a":' * 10_000_000]


@pytest.mark.parametrize("text", BRACKETS, ids=["deep", "wide", "objects"])
def test_brackets_are_counted_before_they_are_parsed(text: bytes, tmp_path) -> None:
    refuse(write_header(tmp_path / "net.safetensors", text), "brackets")
    refuse(write_index(tmp_path, text), "brackets")
    hidden = text[:200_000].replace(b"[", rb"\u005b").replace(b"{", rb"\u007b").replace(b'"', b"'")
    header = b'{"__metadata__":{"sane":"' + hidden + b'"},"a":{"dtype":"F32","shape":[1]'
    open_or_refuse(
        write_header(tmp_path / "net.safetensors", header + b',"data_offsets":[0,4]}}', ONE[2])
    )


def open_or_refuse(path: Path) -> None:
    start = time.process_time()
    try:
        open_file(path)
    except SaneError as error:
        assert len(str(error)) < 800
    assert time.process_time() - start < SECONDS


def test_nested_json_is_refused(tmp_path) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    refuse(write_header(tmp_path / "net.safetensors", b'{"a":' + deep + b"}"), "nested too deep")
    refuse(write_index(tmp_path, b'{"weight_map":' + deep + b"}"), "nested too deep")
    refuse(write(tmp_path / "net.safetensors", {"a": GOOD}, deep.decode()), "nested too deep")
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    for index in (deep, b'{"version": 2, "name": "x", "forms": {}}\n' + deep):
        (zoo / "index.jsonl").write_bytes(index)
        with pytest.raises(ZooError, match="index"):
            Zoo.open(zoo)


def test_a_large_header_is_refused_unread(tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    with path.open("wb") as file:
        file.write((99 * 10**6).to_bytes(8, "little"))
        file.truncate(100 * 10**6)
    refuse(path, "99000000 bytes, but at most 64000000")


def test_the_command_is_small_for_brackets(tmp_path) -> None:
    path = write_header(tmp_path / "net.safetensors", BRACKETS[1])
    assert "brackets" in run("inspect", path).require_small().require_sentence()


# many tensors


def write_many(folder: Path, suffix: str, count: int) -> Path:
    path, names = folder / f"net{suffix}", [f"layer.{i}.weight" for i in range(count)]
    if suffix == ".safetensors":
        return write(path, dict.fromkeys(names, ONE))
    if suffix == ".npz":
        return write_zip(path, {f"{name}.npy": array((1,), ONE[2]) for name in names})
    values = torch.ones(count)
    torch.save({name: values[i] for i, name in enumerate(names)}, path)  # one storage
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_a_small_file_has_few_tensors(suffix: str, tmp_path) -> None:
    assert open_file(write_many(tmp_path, suffix, 3_000)).size == 3_000
    refuse(write_many(tmp_path, suffix, 20_000), "tells of 20000 tensors in")


@pytest.mark.parametrize("key", ["layer.{}.weight", "layer.{}", "{}"], ids=["own", "one", "none"])
def test_walks_over_many_tensors_are_linear(key: str) -> None:
    count, values = 8_000, torch.ones(8_000, 1)
    state = {key.format(i): values[i] for i in range(count)}
    start = time.process_time()
    graph = from_state_dict(state, "state")
    assert len(graph.slots) == count
    assert len(tokenize(graph, 128)) == count
    survey = survey_network(graph)
    assert layer_table(survey).rows
    assert [*summary_lines(survey)]
    assert survey_record(survey)["parameters"] == count
    assert time.process_time() - start < 1.5 * SECONDS


def test_links_to_one_file_are_opened_once(tmp_path) -> None:
    tensors = {f"x{i}": ONE for i in range(900)}
    where = {f"x{i}": f"f{i:03}.safetensors" for i in range(900)}
    path = write_index(tmp_path, {"weight_map": where}, f000=tensors)
    for i in range(1, 900):
        (tmp_path / f"f{i:03}.safetensors").symlink_to("f000.safetensors")
    refuse(path, "in two files")


# what checkpoints and archives make of few bytes


def _tuples() -> object:
    inner = [torch.ones(1)] * 5_000
    return {"w": torch.ones(1), **{f"k{i}": inner for i in range(5_000)}}


def _optimizers() -> object:
    return {"w": torch.ones(2), "A" * 900: {f"optim{i}": {} for i in range(20_000)}}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: {"a": torch.ones(1, 1).expand(2**31, 1)}, "ask for 8589934592 bytes"),
        (lambda: {"a": torch.ones(1).expand(2**12, 2**12)}, "ask for"),
        (lambda: {"a": torch.ones(8).as_strided((2**11, 2**12), (0, 0))}, "ask for"),
        (_tuples, "tensors"),
        (lambda: {"a": torch.ones(1), "b": [None] * 700_000}, "too large"),
    ],
    ids=["expanded", "square", "strided", "tuples", "steps"],
)
def test_checkpoints_that_ask_for_more_than_they_hold(
    make: Callable[[], object], said: str, tmp_path
) -> None:
    torch.save(make(), tmp_path / "net.pt")
    refuse(tmp_path / "net.pt", said)


def test_many_optimizers_make_a_short_note(tmp_path) -> None:
    torch.save(_optimizers(), tmp_path / "net.pt")
    notes = open_file(tmp_path / "net.pt").notes
    assert "and 19992 more" in notes[-1]
    assert len(notes[-1]) < 10_000


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_tensor_is_dense_in_proportion(tmp_path) -> None:
    huge = torch.sparse_coo_tensor(
        torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (2**14, 2**14)
    )
    torch.save({"a": torch.ones(3), "b": huge}, tmp_path / "net.pt")
    assert open_file(tmp_path / "net.pt").missed == {"b": 2**28}


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_packed_storage_is_not_unpacked_for_each_of_its_parts(tmp_path) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            values = torch.zeros(2**20)
            for i in range(200):
                self.register_buffer(f"b{i}", values[i : i + 10])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Parts()), buffer)
    plain = tmp_path / "plain.jit"
    plain.write_bytes(buffer.getvalue())
    assert open_file(plain).size == 2_000
    with zipfile.ZipFile(plain) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    refuse(write_zip(tmp_path / "net.jit", members, zipfile.ZIP_DEFLATED), "unpacked")


def test_shared_parts_of_a_script_are_counted(tmp_path) -> None:
    shared = [0] * 100_000
    refuse(write_script(tmp_path / "net.jit", [[shared, []]] * 50_000), "attributes|tensor")


def test_zeros_of_the_room_are_read(tmp_path) -> None:
    np.savez_compressed(tmp_path / "net.npz", a=np.zeros((1000, 4000), "f4"))
    assert (tmp_path / "net.npz").stat().st_size < 2**16
    assert survey_network(open_file(tmp_path / "net.npz")).zeros == 4_000_000


# ties


FOUR = {
    "a": GOOD,
    "b": OTHER,
    "c": GOOD,
    "d": ("F32", [16], GOOD[2]),
    "e": ("I32", [4, 4], GOOD[2]),
}


@pytest.mark.parametrize(
    ("ties", "believed"),
    [
        ({"c": "a"}, {"c": "a"}),
        ({"b": "a", "c": "a"}, {"c": "a"}),  # other values
        ({"d": "a"}, {}),  # another shape
        ({"e": "a", "a": "e"}, {}),  # another type
        ({"a": "a"}, {}),
        ({"a": "c", "c": "a"}, {}),
        ({"a": "c", "c": "d", "d": "a"}, {}),
        ({"b": "nowhere"}, {}),
        ({"nowhere": "a"}, {}),
        ({"b": ["a"]}, {}),
        ({"b": 1}, {}),
        ({"b": None}, {}),
        (["a", "b"], {}),
        ({f"x{i}": "a" for i in range(100_000)}, {}),
    ],
)
@pytest.mark.parametrize("sharded", [False, True], ids=["one", "several"])
def test_ties_hide_no_tensor(ties, believed: dict[str, str], sharded: bool, tmp_path) -> None:
    entry = json.dumps({"keys": [*FOUR], "ties": ties, "axes": {}})
    if sharded:
        files = {"one": {k: FOUR[k] for k in "ab"}, "two": {k: FOUR[k] for k in "cde"}}
        where = {key: f"{name}.safetensors" for name, keys in files.items() for key in keys}
        path = write_index(tmp_path, {"weight_map": where, "metadata": {"sane": entry}}, **files)
    else:
        path = write(tmp_path / "net.safetensors", FOUR, entry)
    graph = open_file(path)
    assert graph.ties == believed
    assert {p.key for p in graph.params} == {*"abcd"} - believed.keys()
    if (
        isinstance(ties, dict)
        and {*ties} < {*FOUR}
        and believed != ties
        and "a" in [*ties.values()]
    ):
        assert any("ties in its metadata are none" in note for note in graph.notes)


def test_ties_of_our_own_files_are_kept(tmp_path) -> None:
    weight = torch.randn(3, 3)
    graph = from_state_dict({"a": weight, "b": weight, "c": torch.randn(3, 3)}, "state")
    for name in ("net.safetensors", "net.safetensors.index.json"):
        save_network(graph, tmp_path / name)
        assert open_file(tmp_path / name).ties == {"b": "a"}


@pytest.mark.parametrize("axis", [-1, 2, 10**20, True, "0", None])
def test_axes_that_do_not_exist_are_ignored(axis: object, tmp_path) -> None:
    entry = json.dumps({"keys": ["a"], "ties": {}, "axes": {"a": axis}})
    graph = open_file(write(tmp_path / "net.safetensors", {"a": GOOD}, entry))
    assert graph.params[0].axis == 0


def test_a_zoo_ties_no_name_that_has_a_tensor(tmp_path) -> None:
    form = {
        "tensors": [["a", "float32", [4]], ["b", "float32", [4]]],
        "ties": {"b": "a"},
        "axes": {},
    }
    header = {"version": 2, "name": "x", "forms": {"f": form}}
    (tmp_path / "index.jsonl").write_text(json.dumps(header))
    with pytest.raises(ZooError, match="ties"):
        Zoo.open(tmp_path)


# channels


def test_long_chains_of_groups_are_resolved() -> None:
    groups = ChannelGroups()
    first = last = groups.new(4)
    for _ in range(20_000):
        new = groups.new(4)
        groups.unify(new, last)
        last = new
    assert groups.resolve(first) == last


def test_concatenations_that_double_are_pinned() -> None:
    weights = {"a.weight": torch.ones(4, 3, 1, 1)}
    layers = [
        Layer(name="x", kind="input"),
        Layer(name="a", kind="conv", inputs=("x",), params=(param("a.weight", weights),)),
        Layer(name="c0", kind="concat", inputs=("a", "a"), dims=(1,)),
    ]
    for i in range(60):
        layers.append(Layer(name=f"c{i + 1}", kind="concat", inputs=(f"c{i}",) * 2, dims=(1,)))
    graph = WeightGraph(source="net", layers=tuple(layers), tensors=weights)
    start = time.process_time()
    assert permutation_groups(graph) == ()
    assert time.process_time() - start < SECONDS


def test_wide_groups_are_not_compared_channel_by_channel() -> None:
    module = nn.Sequential(nn.Linear(1, 100_000), nn.ReLU(), nn.Linear(100_000, 1))
    graph = from_module(module)
    with pytest.raises(SourceError, match="100000 channels may change places"):
        alignment(graph, graph, torch.Generator().manual_seed(0))


# sentences that say what it is


def test_a_file_name_that_no_system_takes_is_told_in_short(tmp_path) -> None:
    refuse(write_index(tmp_path, {"weight_map": {"a": "x" * 5_000}}), "plain names")
