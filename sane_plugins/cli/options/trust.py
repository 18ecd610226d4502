"""The options by which a user names the functions that files may ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from sane_plugins.architectures import Trust


def trust_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --factory and --trust, and hand them to a command as `trust`."""

    @click.option(
        "--factory",
        "factories",
        multiple=True,
        metavar="NAME",
        help="A package.module:function that the files name and you know; repeat for more.",
    )
    @trust_option
    @functools.wraps(command)
    def run(*args: Any, factories: tuple[str, ...], trust: bool, **kwargs: Any) -> None:
        command(*args, trust=typed_trust(factories, trust), **kwargs)

    return run


trust_option = click.option(
    "--trust", is_flag=True, help="Call whatever function the files name: it can do anything."
)


def typed_trust(names: Iterable[str | None], everything: bool) -> Trust:
    """Return what the user trusts; what is not installed may lie in the working directory."""
    return Trust(frozenset(name for name in names if name), everything, working_directory())


def working_directory() -> Path | None:
    """Return the working directory; None if it was deleted."""
    try:
        return Path.cwd()
    except OSError:
        return None


def forget_working_directory_style() -> None:
    """Undo what a `matplotlibrc` in the working directory asks for: it may have LaTeX called.

    Raises `SourceError` for one that cannot be read, which keeps matplotlib from being imported.
    """
    from sane_plugins.formats import source_errors

    file = Path("matplotlibrc")
    if find_spec("matplotlib") is None or not file.exists():
        return
    with source_errors(file, "matplotlib cannot read it", "another folder"):
        import matplotlib as mpl

        if Path(mpl.matplotlib_fname()).absolute() == file.absolute():
            mpl.rcdefaults()
