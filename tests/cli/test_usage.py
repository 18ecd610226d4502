"""What `sane-init` wrote can be used: by the printed code, by the metadata, and `verify` tells it."""

import dataclasses
import json
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from sane_plugins import Host
from sane_plugins.architectures import BuildCode, import_torchvision
from sane_plugins.arguments import ArgumentTypeError
from sane_plugins.cli.initialization.inputs import InputNames
from sane_plugins.cli.initialization.snippet import usage_snippet
from sane_plugins.cli.initialization.targets import resolve_target
from sane_plugins.cli.initialize import main
from sane_plugins.errors import SourceError
from sane_plugins.tasks import Usage, load_task

QUICK = ("--samples", 1, "--keep", 1, "--budget", 0.1)
NAMES = ("red fox", "lemon", 'o\'clock "bell"')
FACTORY = """
from torch import nn

def build(n_classes=5):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, n_classes))
"""


def run(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments)])


@contextmanager
def folder_on_path(folder: Path):
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("own_network", None)


def write_folder(folder: Path, side: int = 32) -> Path:
    """Write images whose brightness tells the class."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 60, (side, side, 3)) + 60 * label
            image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


TARGETS = {
    "small-cnn": None,
    "own_network:build": None,
    "squeezenet1_1": "torchvision",
    "torchvision:googlenet": "torchvision",
    "resnet10t": "timm",
    "test_vit,size=32": "timm",
    "squeezenet1_0,channels=3": "torchvision",
}


@pytest.mark.parametrize("target", TARGETS)
def test_the_snippet_runs_and_prepares_images_as_the_task_has_them(target: str, tmp_path) -> None:
    if find_spec("torchvision") is None or find_spec(TARGETS[target] or "torch") is None:
        pytest.skip(f"{target} needs more than is installed")
    import_torchvision()
    (tmp_path / "own_network.py").write_text(FACTORY)
    photos = write_folder(tmp_path / "photos")
    names = InputNames(
        model=target,
        factory=None,
        task=str(photos),
        size=None,
        prompts=(),
        sane=None,
        sampler="kde",
    )
    host = Host.installed()
    with folder_on_path(tmp_path):
        found = resolve_target(host, names)
        network = found.module()
        for suffix in (".safetensors", ".pt"):
            path = host.save(host.open(network), tmp_path / f"out{suffix}")
            made: dict = {}
            exec(usage_snippet(path, found.build_code(), Usage.of(found.task)), made)
            state = made["network"].state_dict()
            assert all(torch.equal(state[key], x) for key, x in network.state_dict().items())
    assert made["classes"] == sorted(NAMES)
    from PIL import Image

    with Image.open(photos / sorted(NAMES)[0] / "0.png") as opened:
        prepared = made["transform"](opened)
    images = torch.cat([found.task.x_train, found.task.x_test])
    step = 1 / 255 / min(found.task.pixel_deviation)  # of a pixel that resizing rounds
    assert (images - prepared).abs().amax((1, 2, 3)).min() < step
    with torch.no_grad():
        assert made["network"].eval()(prepared[None]).shape == (1, 3)


def test_metadata_are_read_back_and_verify_tells_them(tmp_path) -> None:
    photos, output = write_folder(tmp_path / "photos"), tmp_path / "out.safetensors"
    done = run("--task", photos, "-o", output, *QUICK, "--report", tmp_path / "report.html")
    assert done.exit_code == 0, done.stderr
    with safe_open(output, "pt") as file:
        stored = json.loads(file.metadata()["sane"])
    assert stored["classes"] == sorted(NAMES)
    task = load_task(photos, sets_test_aside=False)
    preparation = stored["preparation"]
    assert preparation["mean"] == pytest.approx(task.pixel_mean, rel=1e-4)
    assert preparation["deviation"] == pytest.approx(task.pixel_deviation, rel=1e-4)
    assert preparation["size"] == [32, 32]
    assert "network.load_state_dict(load_file(" in done.stdout
    assert "v2.Normalize(mean=" in (tmp_path / "report.html").read_text()
    verified = run("verify", output, "--json")
    assert verified.exit_code == 0, verified.output
    told = json.loads(verified.stdout)
    assert {key: told[key] for key in ("classes", "preparation")} == {
        key: stored[key] for key in ("classes", "preparation")
    }
    assert "red fox" in run("verify", output).stdout


def test_all_images_of_a_folder_without_test_images_are_used(tmp_path) -> None:
    photos, output = write_folder(tmp_path / "photos"), tmp_path / "out.safetensors"
    done = run("--task", photos, "-o", output, "--json", "--samples", 1, "--keep", 1, "--rung", 3)
    notes = " ".join(json.loads(done.stdout)["notes"])
    assert f" of {12 * len(NAMES)}" in notes
    assert "test images" not in notes
    assert "images tell accuracies to within" in notes
    assert len(load_task(photos).y_train) < 12 * len(NAMES)


def test_a_file_from_when_a_fifth_was_set_aside_is_verified(tmp_path, monkeypatch) -> None:
    photos, output = write_folder(tmp_path / "photos"), tmp_path / "out.safetensors"
    change, told = dataclasses.replace, InputNames.to_json
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "sane_plugins.cli.initialize.replace",
            lambda x, **named: x if "sets_test_aside" in named else change(x, **named),
        )
        earlier.setattr(
            InputNames,
            "to_json",
            lambda self: {k: x for k, x in told(self).items() if k != "sets_test_aside"},
        )
        done = run("--task", photos, "-o", output, *QUICK)
    assert done.exit_code == 0, done.stderr
    assert "test images were not used" in done.stderr
    with safe_open(output, "pt") as file:
        assert "sets_test_aside" not in str(file.metadata())
    assert run("verify", output).exit_code == 0


def test_a_file_beside_tells_it_where_the_form_has_no_room(tmp_path) -> None:
    photos, output = write_folder(tmp_path / "photos"), tmp_path / "out.pt"
    assert run("--task", photos, "-o", output, *QUICK).exit_code == 0
    beside = json.loads((tmp_path / "out.pt.provenance.json").read_text())
    assert Usage.from_metadata(beside).classes == tuple(sorted(NAMES))
    assert run("verify", output).exit_code == 0


@pytest.mark.parametrize("names", [("a",) * 2000, tuple(f"class {i}" for i in range(30))])
def test_many_classes_are_written_or_read(tmp_path, names) -> None:
    usage = Usage(
        classes=names,
        size=(8, 8),
        channels=1,
        colours="grey",
        resize="",
        pixel_unit=255.0,
        mean=(0.5,),
        deviation=(0.2,),
    )
    from safetensors.torch import save_file

    path = tmp_path / "out.safetensors"
    save_file({}, path, {"sane": json.dumps(usage.to_metadata())})
    snippet = usage_snippet(path, BuildCode("import json", "torch.nn.Module()"), usage)
    assert all(len(line) < 120 or str(path) in line for line in snippet.splitlines())
    made: dict = {}
    exec(snippet, made)
    assert made["classes"] == [*names]


TASK_ON_DISK = Usage.of(load_task("digits"))
LIBRARY_CODE = BuildCode("import torchvision", "torchvision.models.get_model('squeezenet1_0')")


@pytest.mark.parametrize("fits", [True, False])
def test_a_torchvision_that_does_not_fit_is_imported_first(tmp_path, monkeypatch, fits) -> None:
    monkeypatch.setattr("sane_plugins.cli.initialization.snippet.find_spec", lambda _: True)
    monkeypatch.setattr("sane_plugins.architectures.torchvision_fits", lambda: fits)
    lines = usage_snippet(tmp_path / "out.pt", LIBRARY_CODE, TASK_ON_DISK).splitlines()
    called = "import_torchvision()" in lines
    assert called is not fits
    if called:
        assert lines.index("import_torchvision()") < lines.index("import torchvision")
    else:
        assert lines[0] == "import torch"


def test_a_torchvision_that_does_not_import_is_done_without(monkeypatch) -> None:
    def fails():
        raise SourceError(
            "torchvision", "it does not import", "one that fits is needed", "install it"
        )

    monkeypatch.setattr("sane_plugins.cli.initialization.snippet.find_spec", lambda _: True)
    monkeypatch.setattr("sane_plugins.architectures.torchvision_fits", fails)
    code = BuildCode("", "torch.nn.Module()")
    assert "torchvision" not in usage_snippet(Path("out.pt"), code, TASK_ON_DISK)


def test_the_snippet_runs_in_a_process_of_its_own(tmp_path) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    host = Host.installed()
    path = host.save(host.open("torchvision:squeezenet1_0"), tmp_path / "out.safetensors")
    code = "import logging\nlogging.disable()\n" + usage_snippet(path, LIBRARY_CODE, TASK_ON_DISK)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_torchvision_the_snippet_does_without(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sane_plugins.cli.initialization.snippet.find_spec", lambda _: None)
    task = load_task("digits")
    from safetensors.torch import save_file

    path = tmp_path / "out.safetensors"
    save_file({}, path)
    snippet = usage_snippet(path, BuildCode("", "torch.nn.Module()"), Usage.of(task.resized(12)))
    assert "from torchvision" not in snippet
    made: dict = {}
    exec(snippet, made)
    given = task.x_test[:5] * task.pixel_deviation[0] + task.pixel_mean[0]
    prepared = made["transform"](given * task.pixel_unit)
    assert torch.allclose(prepared, task.resized(12).x_test[:5], atol=1e-3)


@pytest.mark.parametrize(
    "broken", [{"mean": "x"}, {"size": [1]}, {"more": 1}, {"classes": [1]}, {"pixel_unit": None}]
)
def test_what_a_strangers_file_says_of_its_use_is_checked(broken: dict) -> None:
    metadata = Usage.of(load_task("digits")).to_metadata()
    assert Usage.from_metadata(json.loads(json.dumps(metadata))) is not None
    classes = broken.pop("classes", metadata["classes"])
    changed = {"classes": classes, "preparation": {**metadata["preparation"], **broken}}
    if changed != metadata:
        with pytest.raises(ArgumentTypeError):
            Usage.from_metadata(changed)


def test_a_share_and_a_folder_to_choose_by(tmp_path) -> None:
    photos, output = write_folder(tmp_path / "photos"), tmp_path / "out.safetensors"
    write_folder(tmp_path / "others")
    for value, share in (("0.5", 0.5), (tmp_path / "others", 0.2)):
        more = ("-o", output, "--force", "--json", *QUICK)
        done = run("--task", photos, "--validation", value, *more)
        assert done.exit_code == 0, done.stderr
        provenance = json.loads(done.stdout)["provenance"]
        assert provenance["command"]["validation"] == str(value)
        assert provenance["options"]["validation"] == share
        assert run("verify", output).exit_code == 0
    done = run("--task", photos, "--validation", "1.5", "-o", output, "--force")
    assert done.exit_code == 2
    assert "between 0 and 1" in done.stderr
