"""MLflow: networks by the names of its registry and its runs, `models:/NAME/VERSION` and `runs:/ID/path`.

MLflow downloads the folder, and what is in it is read by our own readers: nothing of it is run or unpickled.
The evaluator for `mlflow.models.evaluate` is `sane_mlflow.evaluator.SaneEvaluator`.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sane_plugins import hookimpl

if TYPE_CHECKING:
    from sane_plugins import Host
    from sane_plugins.weights import WeightGraph

PREFIXES = ("models:/", "runs:/")


class MlflowModels:
    """Reads models of MLflow with the plugins of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @hookimpl
    def sane_open(self, source: Any) -> WeightGraph | None:
        """Read a model of MLflow. Raises `SourceError` where MLflow, or the model, is not there.

        What is downloaded is kept until the process ends, as tensors are read when they are wanted.
        """
        if not isinstance(source, str) or not source.startswith(PREFIXES):
            return None
        from dataclasses import replace

        from sane_mlflow.download import download_and_keep

        graph = self._host.open(download_and_keep(source))
        return replace(graph, notes=(*graph.notes, f"downloaded from {source} (MLflow)"))


sane_plugin = MlflowModels
