"""The code that uses what `sane-init` wrote: the network with its weights, the transforms, the classes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sane_plugins.display import literal
from sane_plugins.errors import SaneError

if TYPE_CHECKING:
    from sane_plugins.architectures import BuildCode
    from sane_plugins.tasks import Usage

_MOST_CLASSES = 600  # characters of their names that are shown; others are read from the file
_SCALED_UNITS = (255.0, 65535.0)  # torchvision divides whole numbers by these
_WIDTH = 100


def usage_snippet(path: Path, code: BuildCode, usage: Usage) -> str:
    """Return Python code that loads a file that was written, and prepares images for the network."""
    imports, load = _loading(path)
    first, with_transforms = _first_of_torchvision()
    transform_import, transform = (_transforms if with_transforms else _plain_preparation)(usage)
    class_import, classes = _classes(path, usage)
    lines = ["import torch", code.imports, *imports, *class_import, *transform_import]
    plain = sorted({x for x in lines if x.startswith("import")})
    named = sorted({x for x in lines if x.startswith("from")})
    return "\n".join([*first, *plain, *named, "", *classes, *_network(code, load), *transform])


def _first_of_torchvision() -> tuple[list[str], bool]:
    """Return the lines by which torchvision is imported where it does not fit, and whether it can be."""
    from sane_plugins.architectures import torchvision_fits

    if find_spec("torchvision") is None:
        return [], False
    try:
        fits = torchvision_fits()
    except SaneError:  # it does not import at all
        return [], False
    lines = [
        "from sane_plugins.architectures import import_torchvision",
        "",
        "# This torchvision was built for another torch; imported without this, it fails.",
        "import_torchvision()",
        "",
    ]
    return ([] if fits else lines), True


def _network(code: BuildCode, load: str) -> list[str]:
    if not load.startswith("onnx"):
        return [f"network = {code.call}", f"network.load_state_dict({load})"]
    return [f"network = {load}"]


def _loading(path: Path) -> tuple[list[str], str]:
    """Return the imports and the expression that reads the weights of a file."""
    name = literal(str(path))
    if path.suffix == ".safetensors":
        return ["from safetensors.torch import load_file"], f"load_file({name})"
    if path.suffix == ".onnx":
        return ["import onnxruntime"], f"onnxruntime.InferenceSession({name})"
    if path.suffix in (".pt", ".pth"):
        return [], f"torch.load({name}, weights_only=True)"
    return ["import sane_plugins"], f"sane_plugins.open({name}).state_dict()"


def _classes(path: Path, usage: Usage) -> tuple[list[str], list[str]]:
    """Return the imports and lines for the classes' names, read from the file where they are many."""
    told = "  # in the order of the outputs"
    if len(written := ", ".join(map(literal, usage.classes))) <= _MOST_CLASSES:
        line = f"classes = [{written}]"
        if len(line + told) <= _WIDTH:
            return [], [line + told]
        return [], [f"classes = [{told}", *_filled(usage.classes), "]"]
    if path.suffix == ".safetensors":
        read = f'safe_open({literal(str(path))}, "pt").metadata()["sane"]'
        imports = ["import json", "from safetensors import safe_open"]
    else:
        from sane_plugins.formats import sidecar

        read = f"Path({literal(str(sidecar(path)))}).read_text()"
        imports = ["import json", "from pathlib import Path"]
    return imports, [f'classes = json.loads({read})["classes"]{told}']


def _filled(names: tuple[str, ...]) -> list[str]:
    """Return the names as lines of a list."""
    lines = [""]
    for name in map(literal, names):
        if lines[-1] and len(lines[-1]) + len(name) > _WIDTH - 8:
            lines.append("")
        lines[-1] += f"{name}, "
    return [f"    {line.rstrip()}" for line in lines]


def _transforms(usage: Usage) -> tuple[list[str], list[str]]:
    """Return the imports and lines of torchvision's transforms."""
    resize = f"v2.Resize({usage.size}),"
    if usage.pixel_unit in _SCALED_UNITS:
        unit, to_float = 1.0, [resize, "v2.ToDtype(torch.float32, scale=True),"]
    else:
        told = f"  # pixels as in the task, where {usage.pixel_unit:g} is white"
        unit, to_float = usage.pixel_unit, [f"v2.ToDtype(torch.float32),{told}", resize]
    steps = [
        "v2.ToImage(),",
        *{1: ["v2.Grayscale(),"], 3: ["v2.RGB(),"]}.get(usage.channels, []),
        *to_float,
        f"v2.Normalize(mean={_scaled(usage.mean, unit)}, std={_scaled(usage.deviation, unit)}),",
    ]
    lines = ["transform = v2.Compose([", *(f"    {step}" for step in steps), "])"]
    return ["from torchvision.transforms import v2"], lines


def _plain_preparation(usage: Usage) -> tuple[list[str], list[str]]:
    """Return the imports and lines of a function that does without torchvision."""
    lines = [
        "def transform(images):  # (N, C, H, W), their pixels between 0 and "
        + f"{usage.pixel_unit:g}",
        f"    mean, deviation = torch.tensor({[usage.mean, usage.deviation]})[:, :, None, None]",
        f"    images = torch.nn.functional.interpolate(images.float(), {usage.size},",
        '                                             mode="bilinear", antialias=True)',
        f"    return (images / {usage.pixel_unit:g} - mean) / deviation",
    ]
    return [], lines


def _scaled(numbers: tuple[float, ...], unit: float) -> str:
    return repr([float(f"{unit * x:.6g}") for x in numbers])
