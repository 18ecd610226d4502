"""Options of `sane-init` are fields of values: what is added to both needs no third place."""

import inspect
from dataclasses import dataclass, fields, make_dataclass

import click
import pytest
from click.testing import CliRunner

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
