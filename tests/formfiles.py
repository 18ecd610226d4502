"""A small file or folder of every form on the page of formats, with what must be read of it."""

import argparse
import datetime
import json
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from torch.nn.utils import parametrizations, prune

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What to open, the values that it must give by their true names, and what else must hold.

    `count` is the number of true weights, read and missed together, where not all values are known; `missed`
    those that are missed; `refused` is part of the sentence that refuses it; `notes` are parts of notes.
    """

    source: str | Path
    values: State | None = None
    count: int | None = None
    missed: int = 0
    refused: str = ""
    notes: tuple[str, ...] = ()
    ties: Mapping[str, str] = field(default_factory=dict)


Maker = Callable[[Path], Form]
FORMS: dict[str, Maker] = {}
NEEDS: dict[str, str] = {}


def form(name: str, needs: str = "") -> Callable[[Maker], Maker]:
    """Register what makes the form of a row, and the library without which it cannot be made or read."""

    def register(maker: Maker) -> Maker:
        FORMS[name], NEEDS[name] = maker, needs
        return maker

    return register


def can_make(name: str) -> bool:
    """Return whether the library that a form needs is there."""
    return not NEEDS[name] or find_spec(NEEDS[name]) is not None


def net() -> nn.Sequential:
    """Return the network whose weights most forms hold."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def state() -> dict[str, torch.Tensor]:
    """Return its weights."""
    return net().state_dict()


def saved(path: Path, content: object, **options: object) -> Path:
    """Write a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def stored(path: Path, tensors: State, metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), path, metadata)
    return path


# Files


@form("safetensors")
def _(folder: Path) -> Form:
    return Form(source=stored(folder / "net.safetensors", state()), values=state())


@form("safetensors in several files")
def _(folder: Path) -> Form:
    where = {key: f"{key[0]}.safetensors" for key in state()}
    for name in {*where.values()}:
        stored(folder / name, {k: x for k, x in state().items() if where[k] == name})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return Form(source=index, values=state())


@form("torch checkpoints in several files")
def _(folder: Path) -> Form:
    where = {key: f"pytorch_model-0000{1 + int(key[0]) // 2}-of-00002.bin" for key in state()}
    for name in {*where.values()}:
        saved(folder / name, {k: x for k, x in state().items() if where[k] == name})
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return Form(source=folder, values=state())


@form("torch checkpoint")
def _(folder: Path) -> Form:
    return Form(source=saved(folder / "net.pt", state()), values=state())


@form("torch checkpoint before zip files")
def _(folder: Path) -> Form:
    path = saved(folder / "net.pth", state(), _use_new_zipfile_serialization=False)
    return Form(source=path, values=state())


@form("training checkpoint")
def _(folder: Path) -> Form:
    module = net()
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    values = {key: x.clone() for key, x in module.state_dict().items()}
    content = {"epoch": 3, "model": values, "optimizer": optimizer.state_dict()}
    path = saved(folder / "net.tar", content)
    return Form(source=path, values=values, notes=("read from 'model'", "optimiser is left out"))


@form("Lightning checkpoint")
def _(folder: Path) -> Form:
    content = {
        "epoch": 1,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"net.{key}": x for key, x in state().items()},
        "hyper_parameters": argparse.Namespace(lr=0.1, layers=[8, 4]),
        "best": np.float64(0.9),
        "history": np.arange(3),
        "saved": datetime.datetime(2026, 1, 2, 3, 4),
        "path": Path("runs"),
    }
    path = saved(folder / "last.ckpt", content)
    return Form(source=path, values={f"net.{key}": x for key, x in state().items()})


@form("whole module")
def _(folder: Path) -> Form:
    return Form(source=saved(folder / "net.pt", net()), values=state())


@form("whole module of a class that is not installed")
def _(folder: Path) -> Form:
    path, values = saved(folder / "best.pt", _unknown_module()), _unknown_state()
    del sys.modules["a_stranger"]
    return Form(source=path, values=values)


@form("YOLO-style checkpoint")
def _(folder: Path) -> Form:
    content = {
        "epoch": -1,
        "best_fitness": np.float64(0.5),
        "model": _unknown_module().half(),
        "ema": None,
        "train_args": {"lr0": 0.01},
        "date": datetime.datetime.now().isoformat(),
    }
    path, half = saved(folder / "best.pt", content), _unknown_state()
    del sys.modules["a_stranger"]
    return Form(source=path, values={key: x.half() for key, x in half.items()})


def _unknown_module() -> nn.Module:
    """Return a module whose classes nobody can import once their module is forgotten."""
    made = types.ModuleType("a_stranger")
    exec(
        "from torch import nn\nclass Net(nn.Module): pass\nclass Block(nn.Module): pass", vars(made)
    )
    sys.modules["a_stranger"] = made
    module, block = made.Net(), made.Block()
    torch.manual_seed(1)
    block.conv, block.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    module.model, module.names = nn.Sequential(block, nn.Conv2d(4, 2, 1)), {0: "cat"}
    return module


def _unknown_state() -> State:
    values = _unknown_module().state_dict()
    return {key: x for key, x in values.items() if x.is_floating_point()}


@form("TorchScript")
def _(folder: Path) -> Form:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.script(net()).save(str(folder / "net.pt"))
    return Form(source=folder / "net.pt", values=state())


@form("exported program `.pt2`")
def _(folder: Path) -> Form:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net(), (torch.ones(1, 6),)), folder / "net.pt2")
    return Form(source=folder / "net.pt2", values=state())


@form("NumPy `.npz` and `.npy`")
def _(folder: Path) -> Form:
    np.savez(folder / "net.npz", **{key: x.numpy() for key, x in state().items()})
    return Form(source=folder / "net.npz", values=state())


@form("ONNX", "onnx")
def _(folder: Path) -> Form:
    path = onnx_file(folder / "net.onnx", [node("MatMul", ["X", "W"], ["Y"])], {"W": random(4, 3)})
    return Form(source=path, values=tensors({"W": random(4, 3)}))


@form("GGUF", "gguf")
def _(folder: Path) -> Form:
    rows = np.linspace(-2, 2, 64, dtype=np.float32).reshape(2, 32)
    path = gguf_file(folder / "net.gguf", {"a.weight": (rows, "F32"), "b.weight": (rows, "BF16")})
    values = tensors({"a.weight": rows, "b.weight": rows})
    values["b.weight"] = values["b.weight"].bfloat16()
    return Form(source=path, values=values, notes=("declared as llama (GGUF)",))


@form("any suffix, or none")
def _(folder: Path) -> Form:
    for name in ("net.PTH", "net.model", "a.weights"):
        saved(folder / name, state())
    stored(folder / "b.bin", state())
    return Form(source=saved(folder / "net", state()), values=state())


# Folders, and names of the hub


@form("folder of Hugging Face")
def _(folder: Path) -> Form:
    stored(folder / "model.safetensors", state())
    saved(folder / "pytorch_model.bin", state())
    saved(folder / "training_args.bin", argparse.Namespace())
    config = {"architectures": ["BertModel"], "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))
    return Form(
        source=folder, values=state(), notes=("declared as BertModel (transformers, bert)",)
    )


@form("folder of timm")
def _(folder: Path) -> Form:
    stored(folder / "model.safetensors", state())
    config = {"architecture": "resnet18", "pretrained_cfg": {"tag": "a1_in1k"}}
    (folder / "config.json").write_text(json.dumps(config))
    return Form(source=folder, values=state(), notes=("declared as resnet18.a1_in1k (timm)",))


@form("folder with one file of a network")
def _(folder: Path) -> Form:
    saved(folder / "consolidated.00.pth", state())
    (folder / "params.json").write_text("{}")
    return Form(source=folder, values=state())


@form("folder of Hugging Face's cache")
def _(folder: Path) -> Form:
    return Form(source=_cached(folder), values=state())


@form("`hf:org/name`, `hf:org/name@revision`, `hf:org/name/path`")
def _(folder: Path) -> Form:
    _cached(folder)
    return Form(source="hf:org/name", values=state())


@form("name that the cache does not hold")
def _(folder: Path) -> Form:
    _cached(folder)
    return Form(source="hf:org/other", refused="hf download org/other")


def _cached(folder: Path) -> Path:
    """Write a network as the cache keeps it; tests set HF_HUB_CACHE to the folder."""
    repository = folder / "models--org--name"
    for name in ("blobs", "refs", "snapshots/abc"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    stored(repository / "blobs" / "x.safetensors", state()).rename(repository / "blobs" / "f00d")
    (repository / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/f00d")
    return repository


@form("folder of MLflow")
def _(folder: Path) -> Form:
    saved(folder / "data" / "model.pth", net())
    (folder / "MLmodel").write_text("flavors:\n  pytorch:\n    model_data: data\n")
    return Form(source=folder, values=state(), notes=("(MLflow)",))


@form("folder of several networks")
def _(folder: Path) -> Form:
    saved(folder / "a.pth", state())
    saved(folder / "b.pth", state())
    return Form(source=folder, refused="several networks (a.pth, b.pth)")


@form("link that leads out of a folder")
def _(folder: Path) -> Form:
    (folder / "net").mkdir()
    elsewhere = stored(folder / "other.safetensors", state())
    (folder / "net" / "model.safetensors").symlink_to(elsewhere)
    return Form(source=folder / "net", refused="leads out of its folder")


# Names


@form(
    "`module.` (DataParallel, DDP), `_orig_mod.` (compile), `_fsdp_wrapped_module.`, in any order"
)
def _(folder: Path) -> Form:
    for i, prefix in enumerate(("module.", "_orig_mod.", "_fsdp_wrapped_module.")):
        wrapped = {prefix + key: x for key, x in state().items()}
        saved(folder / f"{i}.pt", wrapped)
        stored(folder / f"{i}.safetensors", wrapped)
    inner = {"module._orig_mod." + key: x for key, x in state().items()}
    return Form(source=saved(folder / "net.pt", inner), values=state())


@form("`AveragedModel`")
def _(folder: Path) -> Form:
    averaged = torch.optim.swa_utils.AveragedModel(net())
    return Form(source=saved(folder / "net.pt", averaged.state_dict()), values=state())


class Tied(nn.Module):
    """A matrix under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


@form("tensors under two names, and aliases of `safetensors.torch.save_model`")
def _(folder: Path) -> Form:
    saved(folder / "net.pt", Tied().state_dict())
    save_model(Tied(), str(folder / "net.safetensors"))
    values = Tied().state_dict()
    return Form(
        source=folder / "net.safetensors", values=values, ties={"head.weight": "embed.weight"}
    )


@form("`torch.nn.utils.prune`")
def _(folder: Path) -> Form:
    module = net()
    prune.l1_unstructured(module[0], "weight", amount=0.5)
    values = {**state(), "0.weight": module[0].weight.detach()}
    return Form(source=saved(folder / "net.pt", module.state_dict()), values=values)


@form("`weight_norm` and `spectral_norm`, as hooks and as parametrisations")
def _(folder: Path) -> Form:
    module, values = net(), state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older forms are deprecated
        nn.utils.weight_norm(module[0])
        nn.utils.spectral_norm(module[2])
    saved(folder / "old.pt", module.state_dict())
    module = net()
    parametrizations.weight_norm(module[0])
    parametrizations.spectral_norm(module[2])
    module.eval()
    values["2.weight"] = module[2].weight.detach()
    return Form(source=saved(folder / "net.pt", module.state_dict()), values=values)


# Quantised and other layouts


@form("quantised tensors of torch")
def _(folder: Path) -> Form:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored_as = torch.quantize_per_tensor(state()["0.weight"], 0.01, 3, torch.qint8)
    values = state() | {"0.weight": stored_as.dequantize()}
    return Form(source=saved(folder / "n.pt", state() | {"0.weight": stored_as}), values=values)


@form("torch.ao: state dict of `quantize_dynamic` and of static quantisation")
def _(folder: Path) -> Form:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
        return Form(source=saved(folder / "net.pt", made.state_dict()), count=92)


@form("sparse tensors")
def _(folder: Path) -> Form:
    content = state() | {"0.weight": state()["0.weight"].to_sparse()}
    return Form(source=saved(folder / "net.pt", content), values=state())


@form(
    "FP8 beside `W_scale`, `W_scale_inv` or `scale_W`: per tensor, channel, block; scales of MX formats"
)
def _(folder: Path) -> Form:
    codes = (torch.randn(16, 16) * 100).to(torch.float8_e4m3fn)
    scales = {"tensor": torch.tensor(0.002), "channel": torch.rand(16, 1) + 0.1}
    content, values = {**state()}, state()
    for name, scale in scales.items():
        content |= {f"{name}.weight": codes.clone(), f"{name}.weight_scale": scale}
        values[f"{name}.weight"] = codes.float() * scale
    block = torch.rand(2, 2) + 0.1
    large = (torch.randn(256, 256) * 100).to(torch.float8_e4m3fn)
    content |= {"block.weight": large, "block.weight_scale_inv": block}
    values["block.weight"] = large.float() * block.repeat_interleave(128, 0).repeat_interleave(
        128, 1
    )
    return Form(source=stored(folder / "net.safetensors", content), values=values)


@form("GPTQ with other zero points, or of 3 bits")
def _(folder: Path) -> Form:
    packed = torch.randint(0, 2**31 - 1, (8, 8), dtype=torch.int32)
    parts = {"qweight": packed, "scales": torch.rand(2, 8), "qzeros": torch.zeros(2, 1).int()}
    content = state() | {f"l.{key}": x for key, x in parts.items()}
    return Form(source=saved(folder / "net.pt", content), count=92 + 512)


@form("AWQ")
def _(folder: Path) -> Form:
    packed = torch.randint(0, 2**31 - 1, (64, 2), dtype=torch.int32)
    parts = {
        "qweight": packed,
        "scales": torch.rand(2, 16).half(),
        "qzeros": torch.zeros(2, 2).int(),
    }
    content = state() | {f"l.{key}": x for key, x in parts.items()}
    return Form(source=saved(folder / "net.pt", content), count=92 + 64 * 16)


@form("bitsandbytes: NF4, FP4 (with quantised scales too, in any storage type), int8")
def _(folder: Path) -> Form:
    codes, largest = torch.randint(-127, 128, (16, 8)).to(torch.int8), torch.rand(16) + 0.1
    content = state() | {"l.weight": codes, "l.SCB": largest}
    return Form(source=stored(folder / "net.safetensors", content), count=92 + 128)


@form("complex numbers")
def _(folder: Path) -> Form:
    content = state() | {"c.weight": torch.ones(4, 4, dtype=torch.complex64)}
    return Form(source=saved(folder / "net.pt", content), count=92 + 16)


@form("several networks in one file")
def _(folder: Path) -> Form:
    other = {key: x + 1 for key, x in state().items()}
    path = saved(folder / "net.pt", {"encoder": state(), "decoder": other})
    return Form(source=path, count=184)


# ONNX


def node(
    kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: object
) -> object:
    """Return a node."""
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, domain=domain, **attributes)


def random(*shape: int) -> np.ndarray:
    """Return the same numbers for each shape."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def integers(*shape: int) -> np.ndarray:
    """Return 8-bit integers, the same for each shape."""
    return np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)


def tensors(arrays: Mapping[str, np.ndarray]) -> State:
    """Return arrays as tensors."""
    return {key: torch.from_numpy(np.array(x)) for key, x in arrays.items()}


def onnx_file(
    path: Path, nodes: list[object], initializers: Mapping[str, object], is_index: bool = False
) -> Path:
    """Write a model from `X` to `Y`."""
    import onnx
    from onnx import helper, numpy_helper

    kinds = onnx.TensorProto
    x = helper.make_tensor_value_info("X", kinds.INT64 if is_index else kinds.FLOAT, None)
    y = helper.make_tensor_value_info("Y", kinds.FLOAT, None)
    made = [
        value if isinstance(value, kinds) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in initializers.items()
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], made)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


SCALE, ZERO = np.float32(0.02), np.int8(3)


@form("quantised weights (DequantizeLinear, QLinear…, …Integer)", "onnx")
def _(folder: Path) -> Form:
    nodes = [node("DequantizeLinear", ["W", "s", "z"], ["f"]), node("MatMul", ["X", "f"], ["Y"])]
    given = {"W": integers(4, 3), "s": SCALE, "z": ZERO}
    path = onnx_file(folder / "net.onnx", nodes, given)
    return Form(source=path, values=tensors({"W": (integers(4, 3) - 3.0) * SCALE}))


@form("integers behind Gather, Transpose, Reshape, Identity, Cast, Sub, Mul", "onnx")
def _(folder: Path) -> Form:
    nodes = [
        node("Gather", ["E", "X"], ["e"]),
        node("DequantizeLinear", ["e", "s", "z"], ["f"]),
        node("Transpose", ["A"], ["At"], perm=[1, 0]),
        node("DequantizeLinear", ["At", "s"], ["Af"]),
        node("MatMul", ["f", "Af"], ["p"]),
        node("Reshape", ["B", "shape"], ["Br"]),
        node("DequantizeLinear", ["Br", "s"], ["Bf"]),
        node("MatMul", ["p", "Bf"], ["Y"]),
    ]
    given = {"E": integers(50, 16), "A": integers(8, 16), "B": integers(24), "s": SCALE, "z": ZERO}
    given["shape"] = np.int64([8, 3])
    return Form(source=onnx_file(folder / "net.onnx", nodes, given, is_index=True), count=952)


@form("`MatMulNBits` with `g_idx`", "onnx")
def _(folder: Path) -> Form:
    size, rows, block = 96, 5, 32
    draws = np.random.default_rng(0)
    codes = draws.integers(0, 16, (rows, size)).astype(np.uint8)
    group, scale = draws.integers(0, 3, size).astype(np.int32), random(rows * 3)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(rows, 3, 16)
    made = node(
        "MatMulNBits",
        ["X", "B", "S", "", "G"],
        ["Y"],
        "com.microsoft",
        K=size,
        N=rows,
        bits=4,
        block_size=block,
    )
    path = onnx_file(folder / "net.onnx", [made], {"B": packed, "S": scale, "G": group})
    right = (codes - 8.0) * scale.reshape(rows, 3)[:, group]
    return Form(source=path, values=tensors({"B": right}))


@form("`DynamicQuantizeLSTM` in one and two directions", "onnx")
def _(folder: Path) -> Form:
    hidden, wide = 5, 6
    names = ["X", "W", "R", "B", "", "", "", "", "Ws", "Wz", "Rs", "Rz"]
    options = {"hidden_size": hidden, "direction": "bidirectional"}
    made = node("DynamicQuantizeLSTM", names, ["Y"], "com.microsoft", **options)
    given = {
        "W": integers(2, wide, 4 * hidden),
        "R": integers(2, hidden, 4 * hidden),
        "B": random(2, 8 * hidden),
        "Ws": np.float32([0.01, 0.02]),
        "Wz": np.int8([0, 0]),
        "Rs": np.float32([0.03, 0.04]),
        "Rz": np.int8([0, 0]),
    }
    count = sum(given[key].size for key in "WRB")
    return Form(source=onnx_file(folder / "net.onnx", [made], given), count=count)


@form("`FusedConv` with a summed input", "onnx")
def _(folder: Path) -> Form:
    pads = [1, 1, 1, 1]
    nodes = [
        node("Conv", ["X", "A"], ["h"], pads=pads),
        node(
            "FusedConv", ["h", "B", "c", "h"], ["s"], "com.microsoft", activation="Relu", pads=pads
        ),
        node("Conv", ["s", "D"], ["Y"]),
    ]
    given = {
        "A": random(8, 3, 3, 3),
        "B": random(8, 8, 3, 3),
        "c": random(8),
        "D": random(4, 8, 1, 1),
    }
    return Form(source=onnx_file(folder / "net.onnx", nodes, given), values=tensors(given))


@form("scales of activations", "onnx")
def _(folder: Path) -> Form:
    nodes = [
        node("QuantizeLinear", ["X", "s", "z"], ["q"]),
        node("QLinearAdd", ["q", "s", "z", "q", "t", "z", "u", "z"], ["r"], "com.microsoft"),
        node("DequantizeLinear", ["r", "u", "z"], ["d"]),
        node("MatMul", ["d", "W"], ["Y"]),
    ]
    given = {"s": SCALE, "t": SCALE * 2, "u": SCALE * 3, "z": np.uint8(3), "W": random(4, 3)}
    path = onnx_file(folder / "net.onnx", nodes, given)
    return Form(source=path, values=tensors({"W": given["W"]}))


@form("masks of `-inf` and other constants that are not finite", "onnx")
def _(folder: Path) -> Form:
    nodes = [node("MatMul", ["X", "W"], ["a"]), node("Add", ["a", "mask"], ["b"])]
    nodes.append(node("Softmax", ["b"], ["Y"]))
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    path = onnx_file(folder / "net.onnx", nodes, {"W": random(4, 4), "mask": mask})
    return Form(source=path, count=16)


@form("values in files beside the model", "onnx")
def _(folder: Path) -> Form:
    import onnx

    path = onnx_file(
        folder / "net.onnx", [node("MatMul", ["X", "W"], ["Y"])], {"W": random(40, 30)}
    )
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (folder / "w.bin").exists()
    return Form(source=path, values=tensors({"W": random(40, 30)}))


@form("4-bit floats", "onnx")
def _(folder: Path) -> Form:
    from onnx import TensorProto

    codes = TensorProto(name="W", dims=[4, 6], data_type=TensorProto.FLOAT4E2M1, raw_data=bytes(12))
    nodes = [node("DequantizeLinear", ["W", "s"], ["f"]), node("MatMul", ["X", "f"], ["a"])]
    nodes.append(node("MatMul", ["a", "V"], ["Y"]))
    given = {"W": codes, "s": SCALE, "V": random(6, 2)}
    return Form(source=onnx_file(folder / "net.onnx", nodes, given), count=36)


# GGUF


def gguf_file(path: Path, arrays: Mapping[str, tuple[np.ndarray, str]]) -> Path:
    """Write arrays, each in a type of GGML; bytes where they are 8-bit integers."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for name, (values, kind) in arrays.items():
        known = gguf.GGMLQuantizationType[kind]
        raw = values if values.dtype == np.uint8 else gguf.quants.quantize(values, known)
        writer.add_tensor(name, raw, raw_dtype=known)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@form("GGUF: Q4_0 to Q8_0, K and IQ types, MXFP4", "gguf")
def _(folder: Path) -> Form:
    import gguf

    known = gguf.GGMLQuantizationType
    rows, blocks = random(2, 256), integers(2, 144).view(np.uint8) & 3
    path = gguf_file(folder / "n.gguf", {"a": (rows, "Q4_0"), "b": (blocks, "Q4_K")})
    right = {
        "a": gguf.quants.dequantize(gguf.quants.quantize(rows, known.Q4_0), known.Q4_0),
        "b": gguf.quants.dequantize(blocks, known.Q4_K),
    }
    return Form(source=path, values=tensors(right))


@form("GGUF: types that the library gguf has no code for", "gguf")
def _(folder: Path) -> Form:
    blocks = integers(2, 292).view(np.uint8)
    path = gguf_file(folder / "n.gguf", {"a": (random(2, 32), "F32"), "b": (blocks, "Q8_K")})
    return Form(source=path, count=64 + 512, missed=512)
