"""The files that are damaged: small ones made here, one for each form, and real ones."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file, save_model
from torch import nn

FORMATS = ("onnx", "checkpoint", "safetensors", "sharded", "npz", "torchscript", "exported")
# What no reader may ever bring back: the one value in all files outside of a case's folder.
CANARY = 1234.578125
_SUFFIXES = {
    ".onnx": "onnx",
    ".pt": "checkpoint",
    ".pth": "checkpoint",
    ".th": "checkpoint",
    ".safetensors": "safetensors",
    ".jit": "torchscript",
}
# Small files whose nodes fill hundreds of megabytes: as they are, more than a worker may use.
_TOO_LARGE = ("light_vgg19.onnx", "light_bvlc_alexnet.onnx")


@dataclass(frozen=True)
class Base:
    """One whole network; `others` are the files that belong to it."""

    form: str
    path: Path
    others: tuple[Path, ...] = ()

    @property
    def weight(self) -> float:
        """Return how often to take it: a small file is damaged in a telling place more often."""
        return 1 / (1 + self.path.stat().st_size / 100_000) ** 2


def corpus(folder: Path, data: Path | None, largest: int = 4_000_000) -> list[Base]:
    """Make the small files in `folder` and list them with the real ones below `data`, if any."""
    bases = [*_torch_files(folder), *_safetensors_files(folder), *_onnx_files(folder)]
    return bases + (list(_real(data, largest)) if data is not None else [])


def make_secrets(folder: Path) -> Path:
    """Write files in several forms that no case may read; return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = torch.full((64, 64), CANARY)
    save_file({"w": values, "b": values[0].clone()}, folder / "secret.safetensors")
    (folder / "secret.bin").write_bytes(values.numpy().tobytes())
    np.savez(folder / "secret.npz", w=values.numpy())
    torch.save({"w": values}, folder / "secret.pt")
    return folder


def _real(data: Path, largest: int) -> Iterator[Base]:
    for path in sorted([*(data / "onnx").rglob("*"), *(data / "checkpoints").rglob("*")]):
        form = _SUFFIXES.get(path.suffix)
        if form and path.stat().st_size <= largest and path.name not in _TOO_LARGE:
            beside = list(path.parent.glob("*.bin")) if form == "onnx" else []
            yield Base(form, path, tuple(sorted(beside)))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )


def _tied() -> nn.Module:
    module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    module[1].weight = module[0].weight
    return module


def _torch_files(folder: Path) -> Iterator[Base]:
    network = _network()
    state = network.state_dict()
    half = {key: value.half() for key, value in state.items()}
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 1, 4, 4)).sum().backward()
    optimizer.step()
    contents = {
        "plain.pt": state,
        "nested.ckpt": {"epoch": 3, "model": {"net": half}, "ema": [state, 1.5]},
        "trained.pth": {"state_dict": state, "optimizer": optimizer.state_dict()},
    }
    modules = {
        "whole.pt": network,
        "best.pt": {"model": network.half(), "ema": None, "score": np.float64(0.5)},
        "last.ckpt": {"state_dict": state, "args": Namespace(lr=np.float32(0.1), at=PurePath("x"))},
        "arrays.pt": {"model": {key: value.numpy() for key, value in state.items()}},
    }
    for name, content in {**contents, **modules}.items():
        torch.save(content, folder / name)
        yield Base("checkpoint", folder / name)
    network = network.float()
    (folder / "whole.pkl").write_bytes(pickle.dumps(network))
    torch.save(network, folder / "old_whole.pt", _use_new_zipfile_serialization=False)
    yield from (Base("checkpoint", folder / name) for name in ("whole.pkl", "old_whole.pt"))
    torch.save(state, folder / "old.th", _use_new_zipfile_serialization=False)
    yield Base("checkpoint", folder / "old.th")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants to be rid of the form, which users still have
        torch.jit.trace(network.eval(), torch.ones(1, 1, 4, 4)).save(folder / "traced.jit")
        program = torch.export.export(network, (torch.ones(1, 1, 4, 4),))
        torch.export.save(program, folder / "program.pt2")
    yield Base("torchscript", folder / "traced.jit")
    yield Base("exported", folder / "program.pt2")
    with zipfile.ZipFile(folder / "older.pt2", "w") as archive:
        archive.write(folder / "plain.pt", "serialized_state_dict.pt")
    yield Base("exported", folder / "older.pt2")
    arrays = {key: value.numpy() for key, value in state.items()}
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays, extra=np.asfortranarray(np.eye(3)))
    yield from (Base("npz", folder / name) for name in ("plain.npz", "packed.npz"))


def _safetensors_files(folder: Path) -> Iterator[Base]:
    state = _network().state_dict()
    save_file(state, folder / "plain.safetensors", metadata={"format": "pt"})
    keys = list(state)
    told = {"keys": keys, "ties": {}, "axes": {"0.weight": 1}}
    save_file(state, folder / "ours.safetensors", metadata={"sane": json.dumps(told)})
    types = (torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int8, torch.bool)
    mixed = {f"layer{i}.weight": torch.ones(3, 4).to(t) for i, t in enumerate(types)}
    save_file(mixed, folder / "mixed.safetensors")
    save_model(_tied(), str(folder / "tied.safetensors"))
    for name in ("plain", "ours", "mixed", "tied"):
        yield Base("safetensors", folder / f"{name}.safetensors")
    shards = (folder / "model-1.safetensors", folder / "model-2.safetensors")
    for shard, part in zip(shards, (keys[:4], keys[4:]), strict=True):
        save_file({key: state[key] for key in part}, shard)
    where = {key: shards[i // 4 > 0].name for i, key in enumerate(keys)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    yield Base("sharded", index, shards)


def _onnx_files(folder: Path) -> Iterator[Base]:
    for name, nodes in (("layers", _layers()), ("branches", _branches()), ("packed", _quantized())):
        path = folder / f"{name}.onnx"
        onnx.save(_model(*nodes), path)
        yield Base("onnx", path)
    path = folder / "beside.onnx"
    onnx.save(
        _model(*_layers()),
        path,
        save_as_external_data=True,
        location="beside.bin",
        size_threshold=0,
    )
    yield Base("onnx", path, (folder / "beside.bin",))


_Part = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def _model(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> onnx.ModelProto:
    data = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "net", data, out, tensors)
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def _tensor(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
    rng = np.random.default_rng(len(name))
    values = rng.integers(0, 7, shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    return helper.make_tensor(name, kind, shape, values.tobytes(), raw=True)


def _layers() -> _Part:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "c.weight", "c.bias"], ["a"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", *"stuv"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("Reshape", ["c", "shape"], ["d"]),
        node("Transpose", ["m"], ["mt"], perm=[1, 0]),
        node("MatMul", ["d", "mt"], ["e"]),
        node("Add", ["e", "m.bias"], ["f"]),
        node("Gemm", ["f", "g", "h"], ["i"], transB=1, alpha=0.5),
        node("Reshape", ["i", "steps"], ["j"]),
        node("LSTM", ["j", "W", "R", "B"], ["y"], hidden_size=2),
    ]
    sizes: dict[str, tuple[int, ...]] = {
        "c.weight": (4, 1, 3, 3),
        "c.bias": (4,),
        **dict.fromkeys("stuv", (4,)),
        "m": (8, 64),
        "m.bias": (8,),
        "g": (6, 8),
        "h": (6,),
        "W": (1, 8, 3),
        "R": (1, 8, 2),
        "B": (1, 16),
    }
    tensors = [_tensor(key, *shape) for key, shape in sizes.items()]
    tensors.append(helper.make_tensor("shape", TensorProto.INT64, [2], [1, 64]))
    return nodes, [*tensors, helper.make_tensor("steps", TensorProto.INT64, [3], [2, 1, 3])]


def _branches() -> _Part:
    node, value = helper.make_node, _tensor("value", 64, 3)
    inner = helper.make_graph(
        [node("Constant", [], ["k"], value=value), node("MatMul", ["d", "k"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [2], [64, 3])
    filled = helper.make_tensor("one", TensorProto.FLOAT, [1], [0.5])
    other = helper.make_graph(
        [
            node("ConstantOfShape", ["sizes"], ["k"], value=filled),
            node("MatMul", ["d", "k"], ["z"]),
        ],
        "other",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [sizes],
    )
    flat = helper.make_tensor("flat", TensorProto.INT64, [2], [1, -1])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    nodes = [
        node("Reshape", ["x", "flat"], ["d"]),
        node("If", ["yes"], ["e"], then_branch=inner, else_branch=other),
        node("Gather", ["table", "flat"], ["f"]),
        node("LayerNormalization", ["e", "scale"], ["y"]),
    ]
    return nodes, [flat, yes, _tensor("table", 5, 3), _tensor("scale", 3)]


def _quantized() -> _Part:
    node, int8 = helper.make_node, TensorProto.INT8
    nodes = [
        node("DequantizeLinear", ["q", "qs", "qz"], ["w"], axis=0),
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        node("Flatten", ["a"], ["b"]),
        node("DynamicQuantizeLinear", ["b"], ["bq", "bs", "bz"]),
        node("MatMulInteger", ["bq", "p", "bz", "pz"], ["c"]),
        node("Cast", ["c"], ["d"], to=1),
        node("Mul", ["bs", "ps"], ["s"]),
        node("Mul", ["d", "s"], ["e"]),
        node(
            "MatMulNBits",
            ["e", "n", "ns"],
            ["y"],
            domain="com.microsoft",
            K=32,
            N=4,
            bits=4,
            block_size=32,
        ),
    ]
    tensors = [
        _tensor("q", 4, 1, 3, 3, kind=int8),
        _tensor("qs", 4),
        _tensor("qz", 4, kind=int8),
        _tensor("p", 64, 32, kind=int8),
        _tensor("pz", kind=int8),
        _tensor("ps"),
        _tensor("n", 4, 1, 16, kind=TensorProto.UINT8),
        _tensor("ns", 4),
    ]
    return nodes, tensors
