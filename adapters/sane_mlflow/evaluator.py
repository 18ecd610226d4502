"""An evaluator of MLflow: what the weights of a model tell, logged to the run.

`mlflow.models.evaluate(..., evaluators="sane")` finds it by the entry point in `mlflow.model_evaluator`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.models.evaluation import EvaluationResult, ModelEvaluator
from mlflow.utils.time import get_current_time_millis

from sane_mlflow import PREFIXES
from sane_plugins.errors import SaneError, UsageError, visible

if TYPE_CHECKING:
    from sane_mlflow.registered import Registered
    from sane_plugins import Host, WeightGraph
    from sane_plugins.health import Health
    from sane_plugins.properties import AnyEstimate

_LOG = logging.getLogger("sane_mlflow")
_SETTINGS = ("source", "registered", "force")
_COMPARED = 10
_REPORT = "sane.json"


class SaneEvaluator(ModelEvaluator):
    """Logs estimates and what is wrong as metrics, categories as tags, and all of it as `sane.json`.

    `evaluator_config` may hold `source`, a network to read instead of the model (any that `sane_open`
    reads; then no model is needed, and MLflow loads none), `registered`, with how many of the newest
    versions of registered models it is compared (10; 0: with none), and `force`, whether values are told of
    a network unlike all that a head was fitted on (no).
    """

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: Any, **_: Any) -> bool:  # noqa: ARG003
        """Return True: weights tell something of models of all types."""
        return True

    def evaluate(
        self,
        *,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None = None,
        model: Any = None,
        model_id: str | None = None,
        **_: Any,
    ) -> EvaluationResult | None:
        """Log what the weights tell of a model.

        One that is not read is a warning, as MLflow asks all evaluators where none is named; a `source` that
        is not read raises `SourceError`.
        """
        settings = _Settings.read(evaluator_config or {})
        try:
            found = _examine(settings, model, model_id)
        except SaneError as error:
            if settings.source is not None:
                raise
            _LOG.warning("not examined: %s", error)
            return None
        client, now = MlflowClient(), get_current_time_millis()
        client.log_batch(
            run_id,
            metrics=[Metric(key, x, now, 0) for key, x in found.metrics.items()],
            tags=[RunTag(key, visible(x)) for key, x in found.tags.items()],
        )
        client.log_dict(run_id, found.report, _REPORT)
        return EvaluationResult(metrics=found.metrics, artifacts={}, run_id=run_id)


@dataclass(frozen=True)
class _Settings:
    source: str | None = None
    registered: int = _COMPARED
    force: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> _Settings:
        """Read what is ours. Raises `UsageError`.

        Without any key of ours they are for the other evaluators: MLflow gives one mapping to all.
        """
        unknown = sorted(map(str, config.keys() - {*_SETTINGS}))
        if unknown and len(unknown) == len(config):
            _LOG.warning("not read: %s; known are %s", ", ".join(unknown), ", ".join(_SETTINGS))
            return cls()
        settings = cls(**{key: config[key] for key in _SETTINGS if key in config})
        is_right = isinstance(settings.source, str | None) and type(settings.registered) is int
        is_right = is_right and isinstance(settings.force, bool)
        if unknown or not is_right or settings.registered < 0:
            raise UsageError(
                "evaluator_config",
                f"{dict(config)!r}"[:200],
                "source, the name of a network, registered, a number of models, and force, True or False, are"
                " what it may hold",
                "leave the others out",
            )
        return settings


@dataclass
class _Found:
    """What is to be logged."""

    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def add_health(self, health: Health) -> None:
        self.metrics["sane/faults"] = float(len(health.faults))
        self.metrics["sane/notes"] = float(len(health.findings) - len(health.faults))
        self.tags["sane.health"] = health.verdict
        self.report["findings"] = [asdict(x) for x in health.findings]

    def add_estimate(self, estimate: AnyEstimate, force: bool) -> None:
        """Add an estimate; its value only where it may be told."""
        from sane_plugins import CategoryEstimate
        from sane_plugins.properties import estimate_record, is_withheld

        # MLflow's names hold letters, digits, and a few signs.
        name = re.sub(r"[^\w -]", "_", estimate.property)
        self.metrics[f"sane/{name}.in_distribution"] = float(estimate.in_distribution)
        self.report.setdefault("estimates", {})[estimate.property] = estimate_record(
            estimate, force=force
        )
        if is_withheld(estimate, force):
            return
        self.metrics[f"sane/{name}.coverage"] = estimate.coverage
        if isinstance(estimate, CategoryEstimate):
            self.tags[f"sane.{name}"] = estimate.value
            self.tags[f"sane.{name}.set"] = ", ".join(estimate.set)
        else:
            low, high = estimate.interval
            self.metrics |= {
                f"sane/{name}": estimate.value,
                f"sane/{name}.low": low,
                f"sane/{name}.high": high,
            }

    def add_registered(self, nearest: Registered) -> None:
        self.metrics["sane/registered.compared"] = float(nearest.compared)
        self.metrics["sane/registered.unread"] = float(nearest.unread)
        if nearest.name is not None and nearest.relationship is not None:
            self.metrics["sane/registered.similarity"] = nearest.relationship.similarity
            self.tags["sane.registered"] = nearest.name
            self.tags["sane.registered.relation"] = nearest.relation
        self.report["registered"] = asdict(nearest)

    def add_problem(self, what: str, error: SaneError) -> None:
        self.tags[f"sane.{what}"] = str(error)
        self.report.setdefault("problems", {})[what] = str(error)


def _examine(settings: _Settings, model: Any, model_id: str | None) -> _Found:
    """Read a network once, and ask of it all that weights tell; one answer that fails leaves the others."""
    from sane_mlflow.registered import nearest_registered, uri_of
    from sane_plugins import Host
    from sane_plugins.fingerprints import fingerprint
    from sane_plugins.health import check_network

    host, found = Host.installed(), _Found()
    network = _network(model, model_id) if settings.source is None else settings.source

    def is_itself(version: Any) -> bool:
        return network in (uri_of(version), f"models:/{getattr(version, 'model_id', None)}")

    with _opened(host, network) as graph:
        found.report["network"] = network if isinstance(network, str) else graph.source
        found.add_health(check_network(graph))
        try:
            for estimate in host.predict(graph).values():
                found.add_estimate(estimate, settings.force)
        except SaneError as error:
            found.add_problem("not_predicted", error)
        if settings.registered:
            try:
                own = fingerprint(graph)
            except SaneError as error:
                found.add_problem("not_compared", error)
            else:
                client, most = MlflowClient(), settings.registered
                found.add_registered(nearest_registered(host, client, own, is_itself, most))
    return found


@contextmanager
def _opened(host: Host, network: Any) -> Iterator[WeightGraph]:
    """Read a network; what is downloaded for it is removed after the block."""
    if isinstance(network, str) and network.startswith(PREFIXES):
        from sane_mlflow.download import downloaded

        with downloaded(network) as folder:
            yield host.open(folder)
    else:
        yield host.open(network)


def _network(model: Any, model_id: str | None) -> Any:
    """Return where a model is stored, or else the module that MLflow has loaded. Raises `UsageError`."""
    if model_id is not None:
        return f"models:/{model_id}"
    metadata = getattr(model, "metadata", None)
    run_id, path = (getattr(metadata, key, None) for key in ("run_id", "artifact_path"))
    if run_id and path:
        return f"runs:/{run_id}/{path}"
    from torch import nn

    try:
        loaded = model.get_raw_model()
    except (AttributeError, NotImplementedError):
        loaded = None
    if isinstance(loaded, nn.Module):
        return loaded
    raise UsageError(
        "mlflow.models.evaluate",
        "its model is neither stored in MLflow nor a module of torch",
        "a network is needed",
        "name it: evaluator_config={'source': 'models:/NAME/1'}",
    )
