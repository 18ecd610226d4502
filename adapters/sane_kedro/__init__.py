"""Kedro: hooks that predict the properties of networks that a pipeline makes.

They act in projects that have a `sane.yml` among their configuration, and do nothing in others:

    outputs: [model]        # names of datasets: modules, state dicts, or paths of files
    report: data/08_reporting/sane.json   # optional: all estimates, written when the pipeline has run
    force: false            # optional: true tells values of networks unlike all that a head was fitted on

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from kedro.config import MissingConfigException
from kedro.framework.hooks import hook_impl

from sane_plugins import CategoryEstimate, Estimate, Host, SaneError, UsageError
from sane_plugins.properties import (
    estimate_record,
    estimate_text,
    is_withheld,
    rank_all,
    withheld_note,
)

_LOG = logging.getLogger(__name__)
_SETTINGS = frozenset({"outputs", "report", "force"})


class SaneHooks:
    """Predict from the outputs that the project's `sane.yml` names; `estimates` holds what was predicted.

    A network that cannot be predicted from is logged as a warning and ends no pipeline; a setting that is
    wrong raises `UsageError` before the pipeline runs.
    """

    def __init__(self) -> None:
        self.estimates: dict[str, Mapping[str, Estimate | CategoryEstimate]] = {}
        self._outputs: tuple[str, ...] = ()
        self._report: Path | None = None
        self._force = False
        self._tried: set[str] = set()
        self._lock = Lock()  # nodes may run in threads

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Read the settings of a project; those of an earlier one do not last."""
        self._outputs, self._report, self._force = (), None, False
        loader = context.config_loader
        try:
            loader.config_patterns.setdefault("sane", ["sane*", "sane*/**"])
            settings = loader["sane"]
        except (MissingConfigException, AttributeError, KeyError):
            return  # no such file, or a loader that knows no patterns
        self._configure(settings, Path(context.project_path))

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Forget what an earlier run made."""
        self.estimates.clear()
        self._tried.clear()

    @hook_impl
    def after_node_run(self, outputs: Mapping[str, Any]) -> None:
        """Predict from what a node returned."""
        for name in self._outputs:
            if name in outputs:
                self._predict(name, outputs[name])

    @hook_impl
    def after_pipeline_run(self, catalog: Any) -> None:
        """Predict from what another process saved, and write the report."""
        for name in self._outputs:
            if name not in self._tried:
                try:
                    network = catalog.load(name)
                except Exception as error:  # any dataset may fail in its own way
                    _LOG.warning("%s was not predicted from: %s", name, error)
                    continue
                self._predict(name, network)
        if self._report is not None:
            self._report.parent.mkdir(parents=True, exist_ok=True)
            self._report.write_text(json.dumps(self._records(), indent=1) + "\n")

    def _configure(self, settings: Any, project: Path) -> None:
        outputs: Any = settings.get("outputs") if isinstance(settings, Mapping) else None
        is_right = isinstance(outputs, list) and all(isinstance(x, str) for x in outputs)
        report = settings.get("report") if is_right else None
        force = settings.get("force", False) if is_right else False
        is_right = is_right and isinstance(report, str | None) and isinstance(force, bool)
        if not is_right or settings.keys() - _SETTINGS:
            raise UsageError(
                "sane.yml",
                f"{settings!r}"[:200],
                "outputs, a list of names of datasets, and perhaps report, a path, and force, true or false,"
                " are needed",
                "write 'outputs: [model]'",
            )
        self._outputs = tuple(outputs)
        self._report = None if report is None else project / report
        self._force = force

    def _predict(self, name: str, network: Any) -> None:
        with self._lock:
            self._tried.add(name)
            try:
                found = Host.installed().predict(network)
            except SaneError as error:
                _LOG.warning("%s was not predicted from: %s", name, error)
                return
            self.estimates[name] = found
        known = [x for x in found.values() if not is_withheld(x, self._force)]
        told = ", ".join(f"{x.property} {estimate_text(x, force=self._force)}" for x in known)
        _LOG.info(
            "%s: %s", name, "; ".join(filter(None, (told, withheld_note(found, self._force))))
        )

    def _records(self) -> dict[str, dict[str, Any]]:
        """Return all estimates by output and property, as the report holds them."""
        ranks = rank_all(self.estimates)
        return {
            output: {
                name: estimate_record(x, force=self._force, rank=ranks[name].get(output))
                for name, x in found.items()
            }
            for output, found in self.estimates.items()
        }


hooks = SaneHooks()
"""What kedro registers, by the entry point of the group `kedro.hooks`."""
