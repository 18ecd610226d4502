"""Small files and folders of other libraries' forms, as those libraries begin them."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

HDF5 = b"\x89HDF\r\n\x1a\n"


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    """Return a field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def pickled(module: str, protocol: int) -> bytes:
    """Return a pickle whose class is called as that of another library; nothing of it is there."""
    if protocol < 4:
        return b"\x80\x02c" + module.encode() + b"\nModel\nq\x00)\x81q\x01."
    name = (
        b"\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x94\x8c\x05Model\x94\x93\x94)\x81\x94."
    )
    return b"\x80\x04\x95" + struct.pack("<Q", len(name)) + name


def zipped(*names: str) -> bytes:
    """Return a zip archive of small files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}" * 9)
    return file.getvalue()


def tarred(name: str) -> bytes:
    """Return a tar archive of a small file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return file.getvalue()


NODE = field(1, field(1, b"input") + field(2, b"Placeholder"))
BLOCK = b"\x08\x00\x10" + b"\xff" * 9 + b"\x01" + field(3, b"var")
META_GRAPH = field(1, field(2, b"ops") + field(4, b"serve")) + field(2, NODE)
DESCRIPTION = field(1, field(1, b"image"))
FLAX = b"\x81\xa6params\x81\xa6kernel\xc7\x19\x01\x93\x92\x02\x02\xa7float32\xc4\x10" + bytes(16)
XML = b'<?xml version="1.0"?>\n<net name="Model0" version="11">\n<layers></layers></net>'

# What is found, and part of the way out -> the files, by name; the first is opened.
Files = dict[str, bytes]
FOREIGN: dict[str, tuple[str, str, Files]] = {
    "Keras `.h5`": (
        "Keras model",
        "python -m tf2onnx.convert --keras {} --output model.onnx",
        {"model.h5": HDF5 + bytes(88) + b"keras_version model_config"},
    ),
    "Keras weights `.h5`": ("HDF5 file", "load_weights", {"model.weights.h5": HDF5 + bytes(99)}),
    "`tf_model.h5` of transformers": (
        "transformers",
        "from_tf=True",
        {"tf_model.h5": HDF5 + b"layer_names", "config.json": b"{}"},
    ),
    "Keras `.keras`": (
        "Keras model",
        ".export('model.onnx', format='onnx')",
        {"model.keras": zipped("metadata.json", "config.json", "model.weights.h5")},
    ),
    "TensorFlow SavedModel": (
        "SavedModel",
        "tf2onnx.convert --saved-model",
        {"net/saved_model.pb": field(1, 1) + field(2, META_GRAPH), "net/variables/x": b"x"},
    ),
    "`saved_model.pb`": (
        "SavedModel",
        "tf2onnx.convert --saved-model",
        {"saved_model.pb": field(1, 1) + field(2, META_GRAPH)},
    ),
    "TensorFlow checkpoint": (
        "TensorFlow checkpoint",
        "--checkpoint",
        {"model.ckpt.index": bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"},
    ),
    "a folder with a TensorFlow checkpoint": (
        "TensorFlow checkpoint",
        "--checkpoint",
        {"net/model.ckpt.data-00000-of-00001": bytes(99), "net/model.ckpt.index": b"x"},
    ),
    "frozen TensorFlow graph `.pb`": ("frozen", "--graphdef {}", {"frozen.pb": NODE * 3}),
    "TFLite": (
        "TFLite",
        "tf2onnx.convert --tflite {}",
        {"model.tflite": b"\x1c\0\0\0TFL3" + bytes(99)},
    ),
    "TensorFlow.js `model.json`": (
        "TensorFlow.js",
        "tensorflowjs_converter",
        {"model.json": b'{"format": "layers-model", "modelTopology": {}, "weightsManifest": []}'},
    ),
    "Paddle `.json` (PIR)": (
        "Paddle model",
        "paddle2onnx",
        {"inference.json": b'{"base_code":{"magic":"pir","trainable":false,"version":1}}'},
    ),
    "Paddle `.pdmodel`": ("Paddle model", "paddle2onnx", {"net.pdmodel": field(1, BLOCK)}),
    "Paddle `.pdiparams`": (
        "Paddle model",
        "paddle2onnx",
        {
            "net.pdiparams": bytes(16)
            + struct.pack("<i", 6)
            + b"\x08\x05\x10\x04\x10\x04"
            + bytes(64)
        },
    ),
    "Paddle `.pdparams`": (
        "Paddle state dict",
        "numpy.savez",
        {"net.pdparams": pickle.dumps({"w": [1.0], "StructuredToParameterName@@": {}}, 2)},
    ),
    "Flax `.msgpack`": ("Flax", "msgpack_restore", {"flax_model.msgpack": FLAX}),
    "Orbax folder": (
        "Orbax",
        "PyTreeCheckpointer().restore(",
        {"net/_METADATA": b"{}", "net/manifest.ocdbt": b"x", "net/d/0": b"x"},
    ),
    "OpenVINO `.xml`": ("OpenVINO", "numpy.savez", {"net.xml": XML, "net.bin": bytes(64)}),
    "OpenVINO `.bin`": ("OpenVINO", "read_model(", {"net.bin": bytes(64), "net.xml": XML}),
    "Core ML `.mlmodel`": (
        "Core ML model",
        "ONNX",
        {"a.mlmodel": field(1, 4) + field(2, DESCRIPTION)},
    ),
    "Core ML `.mlpackage`": (
        "Core ML package",
        "ONNX",
        {"net.mlpackage/Manifest.json": b"{}", "net.mlpackage/Data/x": b"x"},
    ),
    "TensorRT engine": ("TensorRT", "ONNX", {"net.engine": b"ftrt" + bytes(99)}),
    "ncnn `.param`": ("ncnn", "ONNX", {"net.param": b"7767517\n3 3\n"}),
    "ncnn `.bin`": ("ncnn", "ONNX", {"net.bin": bytes(64), "net.param": b"7767517\n3 3\n"}),
    "MNN": ("MNN", "ONNX", {"net.mnn": struct.pack("<I", 32) + bytes(99)}),
    "ExecuTorch `.pte`": ("ExecuTorch", "ONNX", {"net.pte": b"\x1c\0\0\0ET12" + bytes(99)}),
    "onnxruntime's `.ort`": ("onnxruntime", "ONNX", {"net.ort": b"\x1c\0\0\0ORTM" + bytes(99)}),
    "RKNN": ("RKNN", "ONNX", {"net.rknn": b"RKNN" + bytes(99)}),
    "GGML before GGUF": ("GGML", "as GGUF", {"ggml-model.bin": b"lmgg" + bytes(99)}),
    "llama2.c": ("llama2.c", "exported from", {"model.bin": b"24ka" + bytes(99)}),
    "MXNet `.params`": (
        "MXNet",
        "mxnet.nd.load('{}')",
        {"net.params": struct.pack("<QQ", 0x112, 0) + bytes(99)},
    ),
    "fastText `.bin`": (
        "fastText",
        "load_model('{}')",
        {"cc.bin": b"\xba\x16\x4f\x2f" + bytes(99)},
    ),
    "MATLAB `.mat`": ("MATLAB", "loadmat('{}')", {"net.mat": b"MATLAB 5.0 MAT-file" + bytes(200)}),
    "scikit-learn pickle": (
        "scikit-learn",
        "skl2onnx",
        {"model.pkl": pickled("sklearn.neural_network._multilayer_perceptron", 4)},
    ),
    "scikit-learn pickle, protocol 2": (
        "scikit-learn",
        "skl2onnx",
        {"model.pth": pickled("sklearn.pipeline", 2)},
    ),
    "joblib, packed": (
        "scikit-learn",
        "joblib.load('{}')",
        {"model.joblib": zlib.compress(pickled("sklearn.pipeline", 4))},
    ),
    "LightGBM, XGBoost, CatBoost": (
        "decision trees",
        "neural network",
        {"model.txt": b"tree\nversion=v4\n"},
    ),
    "torch's distributed checkpoint": (
        "distributed checkpoint",
        "dcp_to_torch {} model.pt",
        {"net/.metadata": b"x", "net/__0_0.distcp": b"x"},
    ),
    "DeepSpeed folder": (
        "DeepSpeed",
        "zero_to_fp32.py",
        {"net/zero_to_fp32.py": b"raise SystemExit", "net/latest": b"global_step1"},
    ),
    "tar archive (`.nemo`)": (
        "tar archive",
        "tar -xf {}",
        {"net.nemo": tarred("model_weights.ckpt")},
    ),
    "zip archive of other files": (
        "zip archive",
        "unzip {}",
        {"a.zip": zipped("policy.pth", "data")},
    ),
    "gzip, bzip2, xz, zstd, 7z": ("packed", "7z x {}", {"net.pth.gz": gzip.compress(b"x" * 99)}),
    "Git LFS pointer": (
        "Git LFS",
        "git lfs pull",
        {
            "model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        },
    ),
    "web page instead of a file": (
        "web page",
        "download",
        {"pytorch_model.bin": b"\n<!DOCTYPE html>\n<html><body>404</body></html>"},
    ),
}


def make_foreign(name: str) -> Callable[[Path], Path]:
    """Return what writes a foreign form into a folder, and returns the path to open."""

    def make(folder: Path) -> Path:
        files = FOREIGN[name][2]
        for place, data in files.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        first = next(iter(files))
        return folder / first.partition("/")[0]

    return make
