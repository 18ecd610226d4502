"""Options of `sane-init` are fields of values: what is added to both needs no third place."""

import inspect
from dataclasses import dataclass, fields, make_dataclass

import click
import pytest
import torch
from click.testing import CliRunner
from onnxfiles import export

from sane_plugins import Host
from sane_plugins.architectures import build_by_name
from sane_plugins.cli.initialization.inputs import InputNames
from sane_plugins.cli.initialize import OutputFiles, main
from sane_plugins.cli.options.dataclass_options import dataclass_options
from sane_plugins.initialize import InitializeOptions

COMMON = {"as_json", "debug", "version", "help", "trust"}


def test_every_option_is_a_field_of_one_group() -> None:
    names = [
        f.name for group in (InputNames, OutputFiles, InitializeOptions) for f in fields(group)
    ]
    taken = {p.name for p in main.params} - COMMON
    assert taken <= {*names}
    # What they name is an option of the API: the SANE, a sampler, a share of the images.
    named = {"sane", "sampler", "validation"}
    assert {name for name in taken if names.count(name) > 1} == named
    assert len(inspect.signature(inspect.unwrap(main.callback)).parameters) <= 5


def test_defaults_of_options_are_those_of_the_api() -> None:
    """A budget is what the command line alone has."""
    api, context = InitializeOptions(), main.make_context("sane-init", ["-o", "x.safetensors"])
    own = {f.name for f in fields(InputNames)} | {"budget"}
    shared = {f.name for f in fields(InitializeOptions)} & context.params.keys() - own
    assert len(shared) > 10
    assert {k: context.params[k] for k in shared} == {k: getattr(api, k) for k in shared}
    given = main.make_context("sane-init", ["-o", "x", "--no-score", "--include", "a*"]).params
    assert given["scored"] is False
    assert given["include"] == ("a*",)


def test_an_unrecognised_onnx_model_gives_an_onnx_file_with_its_factory(
    tmp_path, monkeypatch
) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "own_lenet.py").write_text(
        "from torch import nn\n\n\n"
        "def lenet(classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    network = build_by_name("own_lenet:lenet", 10)
    named = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, "do_constant_folding": False}
    export(network, torch.zeros(2, 1, 8, 8), tmp_path / "net.onnx", False, **named)
    arguments = ["net.onnx", "--no-score", "--budget", "1", "-o", "out.onnx"]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "not recognised" in refused.output
    assert "--factory package.module:function, and the output may be .onnx again" in refused.output
    done = CliRunner().invoke(main, [*arguments, "--factory", "own_lenet:lenet"])
    assert done.exit_code == 0, done.output
    assert Host.installed().open(tmp_path / "out.onnx").container == "onnx"


def test_an_option_that_is_added_to_its_group_arrives() -> None:
    @dataclass(frozen=True)
    class Base:
        old: int = 1
        unset: str = "kept"

    group = make_dataclass("group", [("new", int, 2)], bases=(Base,), frozen=True)
    seen = []

    @click.command()
    @click.option("--old", default=1)
    @click.option("--new", default=2)
    @click.option("--other", default="x")
    @dataclass_options(options=group)
    def command(options, other) -> None:
        seen.append((options, other))

    done = CliRunner().invoke(command, ["--new", "5"], catch_exceptions=False)
    assert done.exit_code == 0
    assert seen == [(group(new=5), "x")]
    assert seen[0][0].unset == "kept"


@pytest.mark.parametrize("module", ["torch", "numpy"])
def test_help_needs_no_torch(module: str) -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom sane_plugins.cli.initialize import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"sys.exit({module!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
