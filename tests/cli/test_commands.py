"""The table of commands: complete, loaded one by one, light, and reachable in every way."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from sane_plugins.cli.lazy_commands import LazyCommands
from sane_plugins.cli.main import main


def _walk(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _walk(command, *path, name)
        else:
            yield (*path, name), command


COMMANDS = dict(_walk(main))


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_every_command_has_its_name_and_prints_json_and_tracebacks() -> None:
    assert ("zoo", "import") in COMMANDS
    for path, command in COMMANDS.items():
        assert command.name == path[-1]
        assert {"as_json", "debug"} <= {param.name for param in command.params}, path


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sane_plugins.cli.main import main\n"
        f"for path in {[(), ('heads',), ('zoo',), *COMMANDS]}:\n"
        "    try: main([*path, '--help'])\n"
        "    except SystemExit: pass\n"
        "    heavy = {'torch', 'numpy', 'sklearn', 'rich'} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{path} loads {heavy}')"
    )
    done = _python("-c", code)
    assert done.stdout.count("Usage") >= 3 + len(COMMANDS)
    assert not done.stderr.strip()


def test_a_command_is_imported_when_it_is_asked_for() -> None:
    code = (
        "import sys; from sane_plugins.cli.main import main\n"
        "try: main(['heads', 'show', '--help'])\nexcept SystemExit: pass\n"
        "prefix = 'sane_plugins.cli.'\n"
        "print(*(x.removeprefix(prefix) for x in sys.modules if x.startswith(prefix)))"
    )
    loaded = _python("-c", code).stdout.splitlines()[-1].split()
    assert "heads.show" in loaded
    assert not {"heads.fit", "pretrain", "zoo", "embed", "initialize"} & set(loaded)


def test_the_table_takes_what_is_no_command_for_an_error() -> None:
    commands = LazyCommands({"walk": "sane_plugins.cli.main:main", "wrong": "json:dumps"})
    assert commands["walk"] is main
    with pytest.raises(TypeError, match="'wrong' is a function"):
        commands["wrong"]


@pytest.mark.parametrize(
    ("wrong", "suggested"), [(["predct"], "predict"), (["zoo", "trian"], "train")]
)
def test_a_typing_error_is_answered_with_the_nearest_command(wrong, suggested: str) -> None:
    done = CliRunner().invoke(main, wrong)
    assert done.exit_code == 2
    assert done.stderr.startswith("Usage: sane-plugins ")
    assert f"'{suggested}'" in done.stderr


def test_the_package_runs_as_the_command() -> None:
    helped = _python("-m", "sane_plugins", "zoo", "--help")
    assert helped.returncode == 0
    assert helped.stdout.startswith("Usage: python -m sane_plugins zoo ")
    assert "evaluate" in helped.stdout
    wrong = _python("-m", "sane_plugins", "predict")
    assert wrong.returncode == 2
    assert "Usage: python -m sane_plugins predict " in wrong.stderr
