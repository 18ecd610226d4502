"""`hf-sane register`: make this program known to `hf`, which runs it as `hf sane`.

`hf` runs what its folder of extensions has a manifest of. `hf extensions install` writes one of repositories
on GitHub only, so a package that pip has installed writes its own.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from sane_plugins.cli.console import command_options, print_json, print_line
from sane_plugins.errors import SourceError, UsageError

_PROGRAM = "hf-sane"
_MANIFEST = f"~/.local/share/hf/extensions/{_PROGRAM}/manifest.json"  # as hf has it, on all systems
# GitHub has no names with a dot: 'hf extensions update' asks it for this one, and must find nothing.
_NOBODY = "installed.by.pip"
_MOST_BYTES = 2**16


@click.command()
@click.option("--force", is_flag=True, help="Replace another program that 'hf sane' runs so far.")
@command_options
def register(force: bool, as_json: bool) -> None:
    """Let 'hf sane' run this program, of this environment; 'hf extensions remove sane' undoes it.

    One file is written, in hf's folder of extensions. Nothing is downloaded.
    """
    from sane_plugins.atomic_files import naming, write_whole

    path, program = Path(_MANIFEST).expanduser(), _installed_program()
    known = _registered_program(path)
    is_new = known != program
    if is_new:
        if known is not None and not force:
            raise UsageError(
                path,
                f"'hf sane' runs {known or 'another program'}",
                "what is registered is replaced only with --force",
                "add --force, or run hf extensions remove sane",
            )
        text = json.dumps(_manifest(program), indent=2, sort_keys=True)
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: partial.write_text(text))
    if as_json:
        print_json({"registered": is_new, "program": program, "file": path})
        return
    print_line(f"'hf sane' {'now runs' if is_new else 'runs'} {program} ({path}).")


def _installed_program() -> str:
    """Return the path of `hf-sane` in this environment; the working directory and PATH are not searched."""
    folders = {sysconfig.get_path("scripts"), str(Path(sys.executable).parent)}
    found = (shutil.which(_PROGRAM, path=folder) for folder in sorted(folders))
    program = next(filter(None, found), None)
    if program is None:
        raise SourceError(
            _PROGRAM,
            f"no program of that name lies beside {sys.executable}",
            "hf needs its path",
            "install sane-plugins with pip in an environment, and run that environment's hf-sane",
        )
    return program


def _registered_program(path: Path) -> str | None:
    """Return what `hf sane` runs; empty where that cannot be read, None where nothing is registered."""
    try:
        with path.open("rb") as file:
            return str(json.loads(file.read(_MOST_BYTES))["executable_path"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _manifest(program: str) -> dict[str, Any]:
    """Return the fields that huggingface_hub 1.7 requires all, and nothing that it does not know."""
    return {
        "owner": _NOBODY,
        "repo": _PROGRAM,
        "repo_id": "sane-plugins",
        "short_name": _PROGRAM.removeprefix("hf-"),
        "executable_name": Path(program).name,
        "executable_path": program,
        "type": "python",
        "installed_at": datetime.now(timezone.utc).isoformat(),
        "source": _NOBODY,
        "description": "Check, compare and read networks in the cache.",
    }
