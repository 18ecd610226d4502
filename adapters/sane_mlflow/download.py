"""Models of MLflow as local folders: MLflow's own download, with errors as sentences."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import ModuleType

from sane_plugins.errors import SourceError, UsageError, first_line
from sane_plugins.formats import exists
from sane_plugins.runtime import without_warnings

_PREFIX = "sane-mlflow-"
_SQLITE = "sqlite:///"
_RUNS = "runs:/"


@contextmanager
def downloaded(uri: str) -> Iterator[Path]:
    """Give the folder or file of a model within the block. Raises `SourceError`."""
    with TemporaryDirectory(prefix=_PREFIX) as folder:
        yield _download(uri, Path(folder))


def download_and_keep(uri: str) -> Path:
    """Return the folder or file of a model, which is removed when the process ends. Raises `SourceError`."""
    folder = Path(mkdtemp(prefix=_PREFIX))
    try:
        path = _download(uri, folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return path


def _download(uri: str, folder: Path) -> Path:
    """Download into a folder of ours: in its own store MLflow would write a file beside the model."""
    run, _, path = uri.removeprefix(_RUNS).partition("/")
    if uri.startswith(_RUNS) and not (run and path):
        raise UsageError(
            uri,
            "it names no file or folder of a run",
            "runs:/ID/path is needed",
            "see the run's artifacts in MLflow",
        )
    mlflow = _import_mlflow(uri)
    try:
        with without_warnings():
            is_of_run = uri.startswith(_RUNS)
            place = str(mlflow.get_tracking_uri() if is_of_run else mlflow.get_registry_uri())
            _require_store(uri, place)
            artifacts = import_module("mlflow.artifacts")
            return Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except SourceError:
        raise
    except Exception as error:  # of MLflow, of its stores, or of the way to a server
        raise SourceError(
            uri,
            f"MLflow does not give it ({first_line(error)})",
            "a model that its store has is needed",
            "check the name, and MLFLOW_TRACKING_URI",
        ) from error


def _import_mlflow(uri: str) -> ModuleType:
    problem = "is not installed" if find_spec("mlflow") is None else ""
    try:
        with without_warnings():
            if not problem:
                return import_module("mlflow")
    except ImportError as error:
        problem = f"does not import ({first_line(error)})"
    raise SourceError(
        uri,
        f"the package mlflow {problem}",
        "names of its models need it",
        "run pip install mlflow",
    )


def _require_store(uri: str, place: str) -> None:
    """Raise `SourceError` for a database that is not there: MLflow would make an empty one."""
    if place.startswith(_SQLITE) and not exists(place.removeprefix(_SQLITE)):
        raise SourceError(
            uri,
            f"MLflow's store {place} does not exist",
            "the store with the model is needed",
            "set MLFLOW_TRACKING_URI to its address",
        )
