"""The table of foreign forms: what they are, by which content, and the command that converts them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sane_plugins.errors import SourceError
from sane_plugins.formats.foreign import foreign_content as content
from sane_plugins.formats.foreign.foreign_content import FileEnds

_ORIGINAL = "name the file that it was made from (ONNX, safetensors or a torch checkpoint)"
_TF2ONNX = "pip install tf2onnx tensorflow, then python -m tf2onnx.convert"
_OTHER_KIND = "name a neural network instead"


_Fits = Callable[[FileEnds], bool]
_TREE = "{k: numpy.asarray(v, 'float32') for k, v in flatten_dict(TREE, sep='.').items()}"
_FLATTEN = "flax; from flax.traverse_util import flatten_dict"


@dataclass(frozen=True)
class ForeignForm:
    """A form that is not read: what it is, and how it becomes one that is.

    In the way out, `{path}` and `{folder}` are words of a shell; `{name}`, `{above}`, `{stem}` and
    `{absolute}` go into text that is quoted already.
    """

    name: str
    way_out: str

    def error(self, path: Path) -> SourceError:
        """Return the error for a file or folder of this form."""
        names = {
            "{path}": shlex.quote(str(path)),
            "{folder}": shlex.quote(str(path.parent)),
            "{name}": str(path),
            "{above}": str(path.parent),
            "{stem}": str(path.with_suffix("")),
            "{absolute}": str(path.absolute()),
        }
        way_out = self.way_out
        for placeholder, name in names.items():
            way_out = way_out.replace(placeholder, name)
        needed = "another form is needed: safetensors, a torch checkpoint, .npz or ONNX"
        return SourceError(path, f"it is {self.name}", needed, way_out).as_unknown()


def _to_numpy(package: str, imports: str, arrays: str) -> str:
    """Return the command that saves a file's arrays as `.npz`, which is read."""
    code = f"import numpy, {imports}; numpy.savez('model.npz', **{arrays})"
    return f'pip install {package}, then python -c "{code}"'


def _starts(*magics: bytes, at: int = 0) -> _Fits:
    return lambda ends: ends.head[at:].startswith(magics)


def _packed(command: str) -> str:
    return f"unpack it with {command}, and name the file inside"


_SAVED_MODEL = "a TensorFlow SavedModel"
_CHECKPOINT = ForeignForm(
    "a TensorFlow checkpoint",
    f"{_TF2ONNX} --checkpoint model.ckpt.meta --inputs NAME:0 --outputs NAME:0 --output model.onnx",
)

FILES: tuple[tuple[_Fits, ForeignForm], ...] = (
    (
        _starts(b"version https://git-lfs.github.com"),
        ForeignForm("a pointer of Git LFS, not the file itself", "run git lfs pull in its folder"),
    ),
    (
        content.is_web_page,
        ForeignForm("a web page", "download the file itself: its address may need /resolve/"),
    ),
    (
        content.is_transformers_tensorflow,
        ForeignForm(
            "a Keras weights file of transformers (TensorFlow)",
            "pip install 'transformers<5' tf-keras tensorflow, then python -c \"from transformers import"
            " AutoModel; AutoModel.from_pretrained('{above}', from_tf=True).save_pretrained('converted')\"",
        ),
    ),
    (
        content.is_keras_h5,
        ForeignForm("a Keras model (HDF5)", f"{_TF2ONNX} --keras {{path}} --output model.onnx"),
    ),
    (
        _starts(b"\x89HDF\r\n\x1a\n"),
        ForeignForm(
            "an HDF5 file, as weights of Keras without their model are",
            "load it in Keras with model.load_weights, then model.export('model.onnx', format='onnx')",
        ),
    ),
    (
        content.is_keras_zip,
        ForeignForm(
            "a Keras model (.keras)",
            'pip install keras tf2onnx tensorflow, then python -c "import keras;'
            " keras.saving.load_model('{name}').export('model.onnx', format='onnx')\"",
        ),
    ),
    (
        _starts(b"TFL3", at=4),
        ForeignForm("a TFLite model", f"{_TF2ONNX} --tflite {{path}} --output model.onnx"),
    ),
    (
        content.is_saved_model,
        ForeignForm(_SAVED_MODEL, f"{_TF2ONNX} --saved-model {{folder}} --output model.onnx"),
    ),
    (
        content.is_graph_def,
        ForeignForm(
            "a frozen TensorFlow graph",
            f"{_TF2ONNX} --graphdef {{path}} --inputs NAME:0 --outputs NAME:0 --output model.onnx",
        ),
    ),
    (content.is_tensorflow_checkpoint, _CHECKPOINT),
    (
        content.is_tensorflow_js,
        ForeignForm(
            "a TensorFlow.js model",
            "pip install tensorflowjs, then tensorflowjs_converter --input_format=tfjs_layers_model"
            f" --output_format=keras {{path}} model.h5, and {_TF2ONNX} --keras model.h5 --output model.onnx",
        ),
    ),
    (
        content.is_paddle_program,
        ForeignForm(
            "a Paddle model",
            "pip install paddle2onnx paddlepaddle, then paddle2onnx --model_dir {folder} --model_filename"
            " inference.pdmodel --params_filename inference.pdiparams --save_file model.onnx",
        ),
    ),
    (
        content.is_paddle_pickle,
        ForeignForm(
            "a Paddle state dict (.pdparams)",
            _to_numpy(
                "paddlepaddle",
                "paddle",
                "{k: v.numpy() for k, v in paddle.load('{name}').items() if hasattr(v, 'numpy')}",
            ),
        ),
    ),
    (
        content.is_flax,
        ForeignForm(
            "a Flax checkpoint (msgpack)",
            _to_numpy(
                "flax",
                _FLATTEN,
                _TREE.replace(
                    "TREE", "flax.serialization.msgpack_restore(open('{name}', 'rb').read())"
                ),
            ),
        ),
    ),
    (
        content.is_openvino,
        ForeignForm(
            "an OpenVINO model (.xml and .bin)",
            _to_numpy(
                "openvino",
                "openvino",
                "{o.get_friendly_name(): o.data for o in openvino.Core().read_model('{stem}.xml')"
                ".get_ops() if o.get_type_name() == 'Constant'}",
            ),
        ),
    ),
    (
        content.is_core_ml,
        ForeignForm("a Core ML model", _ORIGINAL),
    ),
    (_starts(b"ftrt", b"ptrt"), ForeignForm("a TensorRT engine", _ORIGINAL)),
    (_starts(b"7767517\n"), ForeignForm("an ncnn model", _ORIGINAL)),
    (content.is_ncnn_weights, ForeignForm("the weights of an ncnn model", _ORIGINAL)),
    (content.is_mnn, ForeignForm("an MNN model", _ORIGINAL)),
    (_starts(b"ET", at=4), ForeignForm("an ExecuTorch program", _ORIGINAL)),
    (_starts(b"ORTM", at=4), ForeignForm("a model in onnxruntime's own form", _ORIGINAL)),
    (_starts(b"RKNN"), ForeignForm("an RKNN model", _ORIGINAL)),
    (
        _starts(b"lmgg", b"fmgg", b"tjgg", b"algg"),
        ForeignForm(
            "a GGML file, the form before GGUF", "download the model again, as GGUF or safetensors"
        ),
    ),
    (
        _starts(b"24ka"),
        ForeignForm(
            "a checkpoint of llama2.c",
            "name the torch checkpoint that it was exported from (llama2.c's export.py reads none back)",
        ),
    ),
    (
        content.is_mxnet,
        ForeignForm(
            "a file of MXNet's parameters",
            _to_numpy(
                "mxnet",
                "mxnet",
                "{k: v.asnumpy() for k, v in mxnet.nd.load('{name}').items()}",
            ),
        ),
    ),
    (
        _starts(b"\xba\x16\x4f\x2f"),
        ForeignForm(
            "a fastText model",
            _to_numpy(
                "fasttext",
                "fasttext",
                "(lambda m: dict(input=m.get_input_matrix(), output=m.get_output_matrix()))"
                "(fasttext.load_model('{name}'))",
            ),
        ),
    ),
    (
        _starts(b"MATLAB 5.0 MAT-file"),
        ForeignForm(
            "a MATLAB file",
            _to_numpy("scipy", "scipy.io", "scipy.io.loadmat('{name}')"),
        ),
    ),
    (
        content.is_sklearn,
        ForeignForm(
            "a pickled model of scikit-learn",
            "where you trust it, pip install skl2onnx joblib, load it with joblib.load('{name}'), and write"
            " skl2onnx.to_onnx(model, X[:1]).SerializeToString() to model.onnx",
        ),
    ),
    (content.is_trees, ForeignForm("a model of decision trees", _OTHER_KIND)),
    (
        _starts(
            b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!"
        ),
        ForeignForm("a packed file (gzip, bzip2, xz, zstd, 7z or rar)", _packed("7z x {path}")),
    ),
    (
        content.is_tar,
        ForeignForm("a tar archive, as .nemo files are", _packed("tar -xf {path}")),
    ),
    (
        content.is_other_zip,
        ForeignForm("a zip archive of other files", _packed("unzip {path}")),
    ),
)

FOLDERS: tuple[tuple[Callable[[set[str]], bool], ForeignForm], ...] = (
    (
        lambda names: bool({"saved_model.pb", "saved_model.pbtxt"} & names),
        ForeignForm(_SAVED_MODEL, f"{_TF2ONNX} --saved-model {{path}} --output model.onnx"),
    ),
    (
        lambda names: any(".data-00000-of-" in name for name in names),
        _CHECKPOINT,
    ),
    (
        lambda names: any(name.endswith(".distcp") for name in names),
        ForeignForm(
            "a distributed checkpoint of torch",
            "run python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} model.pt",
        ),
    ),
    (
        lambda names: "zero_to_fp32.py" in names,
        ForeignForm(
            "a checkpoint of DeepSpeed",
            "where you trust it, run python {path}/zero_to_fp32.py {path} out",
        ),
    ),
    (
        lambda names: bool(
            {"_CHECKPOINT_METADATA", "manifest.ocdbt", "ocdbt.process_0", "_METADATA"} & names
        ),
        ForeignForm(
            "an Orbax checkpoint (Flax, JAX)",
            _to_numpy(
                "orbax-checkpoint flax",
                f"orbax.checkpoint, {_FLATTEN}",
                _TREE.replace(
                    "TREE", "orbax.checkpoint.PyTreeCheckpointer().restore('{absolute}')"
                ),
            ),
        ),
    ),
    (
        lambda names: "coremldata.bin" in names or {"Manifest.json", "Data"} <= names,
        ForeignForm("a Core ML package", _ORIGINAL),
    ),
)
