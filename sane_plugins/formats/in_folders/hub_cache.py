"""Hugging Face's cache on this machine: which folder `hf:org/name[@revision][/path]` stands for.

Nothing is downloaded: what is not in the cache is an error that names the command which fetches it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sane_plugins.errors import SourceError
from sane_plugins.formats.guards import exists, source_errors
from sane_plugins.formats.suffixes import HUB

_MAIN = "main"
_MAX_REVISION = 200  # characters of a file in `refs`; a commit has 40
# As huggingface_hub writes it: a revision ends at a slash, save for references to pull requests.
_NAME = re.compile(
    r"hf:(?P<repository>[\w.-]+(?:/[\w.-]+)?)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.+))?"
)


def is_hub_name(source: Any) -> bool:
    """Return whether a source is a name of Hugging Face's hub, such as `hf:org/name`."""
    is_named = isinstance(source, str | Path) and str(source).startswith(HUB)
    return is_named and not exists(source)


def cached_path(source: str) -> Path:
    """Return the folder in the cache that a name of the hub stands for, or the file or folder in it.

    Raises `SourceError` where the name is none, or the cache does not hold it.
    """
    found = _NAME.fullmatch(source)
    parts = found["path"].split("/") if found and found["path"] else []
    if not found or any(map(_leads_elsewhere, parts)):
        raise SourceError(
            source,
            "this is no name of the hub",
            "hf:organisation/name, with @revision and /path where they matter, is needed",
            "check the name",
        )
    folder = cache_folder() / f"models--{found['repository'].replace('/', '--')}"
    revision = unquote(found["revision"] or _MAIN)
    return _snapshot(folder, source, found["repository"], revision).joinpath(*parts)


def without_weights(source: str, path: Path) -> SourceError:
    """Return the error of a name of the hub whose folder or file in the cache is no network, or not there."""
    found = _NAME.fullmatch(source)
    repository, revision = (found["repository"], found["revision"]) if found else (source, None)
    return _to_download(
        source, f"the cache holds no weights of it ({path})", repository, unquote(revision or _MAIN)
    )


def is_cached_repository(folder: Path) -> bool:
    """Return whether a folder is what the cache keeps of one repository."""
    return folder.name.startswith("models--") and (folder / "snapshots").is_dir()


def repositories_in(folder: Path) -> list[str]:
    """Return the names of the networks that a folder keeps as the cache does."""
    cached = (path for path in _folders(folder) if is_cached_repository(path))
    return [HUB + _repository(path) for path in cached]


def _repository(folder: Path) -> str:
    return folder.name.removeprefix("models--").replace("--", "/")


def snapshot_of(folder: Path) -> Path:
    """Return the files of a cached repository's main revision, or of its only one."""
    repository = _repository(folder)
    revisions = [path.name for path in _folders(folder / "snapshots")]
    revision = _MAIN if (folder / "refs" / _MAIN).exists() else (*revisions, _MAIN)[0]
    if revision != _MAIN and len(revisions) > 1:
        raise _not_cached(folder, folder.parent, repository, _MAIN, revisions)
    return _snapshot(folder, folder, repository, revision)


def is_cache_internal(path: Path) -> bool:
    """Return whether a file is kept by the cache for its own sake: its snapshots link to it, or name it."""
    return any(
        folder.name in ("blobs", "refs") and is_cached_repository(folder.parent)
        for folder in path.parents
    )


def cache_folder() -> Path:
    """Return the folder of the cache, by the variables that huggingface_hub goes by."""
    variables = os.environ.get
    home = variables("HF_HOME") or str(
        Path(variables("XDG_CACHE_HOME") or Path("~") / ".cache") / "huggingface"
    )
    hub = variables("HF_HUB_CACHE") or variables("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expandvars(hub)).expanduser()


def _snapshot(folder: Path, source: object, repository: str, revision: str) -> Path:
    """Return the folder of a revision: a commit's own, or that of the commit which its reference names."""
    snapshots = folder / "snapshots"
    with source_errors(folder):
        commit = _commit(folder / "refs", revision) or revision
        if not _leads_elsewhere(commit) and (snapshots / commit).is_dir():
            return snapshots / commit
        known = [*_references(folder / "refs")] if snapshots.is_dir() else []
    raise _not_cached(source, folder.parent, repository, revision, known)


def _commit(references: Path, revision: str) -> str:
    """Return the commit that a reference names; empty where there is no such reference."""
    parts = revision.split("/")
    path = references.joinpath(*parts)
    if any(map(_leads_elsewhere, parts)) or not path.is_file():
        return ""
    with path.open(encoding="utf-8") as file:
        return file.read(_MAX_REVISION).strip()


def _references(folder: Path) -> Iterator[str]:
    """Yield the revisions that the cache knows by name."""
    paths = sorted(folder.rglob("*")) if folder.is_dir() else []
    yield from (path.relative_to(folder).as_posix() for path in paths if path.is_file())


def _folders(folder: Path) -> list[Path]:
    with source_errors(folder):
        return sorted(path for path in folder.iterdir() if path.is_dir())


def _leads_elsewhere(name: str) -> bool:
    """Return whether a part of a path is no plain name of a file or folder."""
    return name in ("", ".", "..") or bool({"/", "\\", "\0", ":"} & {*name})


def _not_cached(
    source: object, cache: Path, repository: str, revision: str, known: list[str]
) -> SourceError:
    found = f"it is not in the cache {cache}"
    if known:
        found = f"its revision '{revision}' is not in the cache {cache} ({', '.join(known[:8])})"
    return _to_download(source, found, repository, revision)


def _to_download(source: object, found: str, repository: str, revision: str) -> SourceError:
    command = f"hf download {repository}" + (f" --revision {revision}" if revision != _MAIN else "")
    return SourceError(
        source, found, "only what is there is read, and nothing is downloaded", f"run {command}"
    )
