"""MLflow evaluates a model by its weights alone, and names of its store are networks."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import sane_mlflow
import torch

from sane_plugins import CategoryEstimate, Host, SourceError, UsageError
from sane_plugins.architectures import small_cnn
from sane_plugins.generation import embedded_prompts
from sane_plugins.testing import check_light_import

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own warnings
ABSENT = "HOST ABSENT: run tox -e hosts"
IMAGES = np.zeros((2, 784), np.float32)  # rows, as MLflow wants them


@pytest.fixture(scope="module")
def host() -> Host:
    host = Host.installed()
    if "mlflow" not in {plugin.name for plugin in host.plugins()}:  # not installed anew
        host.register(sane_mlflow, "mlflow")
    return host


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return _trained(0)


@pytest.fixture(scope="module")
def store(network, tmp_path_factory):
    """A store of files: `digits` 1 is a network, 2 the same tuned a little; `stranger` 1 is another."""
    mlflow = pytest.importorskip("mlflow", reason=ABSENT)
    pytest.importorskip("pandas", reason=ABSENT)
    evaluation = pytest.importorskip("mlflow.models.evaluation.evaluator_registry", reason=ABSENT)
    from sane_mlflow.evaluator import SaneEvaluator

    registry = evaluation._model_evaluation_registry
    if not registry.is_registered("sane"):  # not installed anew
        registry.register("sane", SaneEvaluator)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            patch.setenv(name, "true")
        folder = tmp_path_factory.mktemp("mlflow")
        mlflow.set_tracking_uri(f"file:{folder}/mlruns")
        tuned = small_cnn()
        tuned.load_state_dict(network.state_dict())
        with torch.no_grad():
            for param in tuned.parameters():
                param.add_(torch.randn_like(param) * param.std() / 20)
        broken = _trained(1)
        with torch.no_grad():
            next(broken.parameters())[0] = float("nan")
        models = [(network, "digits"), (tuned, "digits"), (_trained(2), "stranger")]
        runs = {name: _log(mlflow, module, name) for module, name in models}
        runs["broken"] = _log(mlflow, broken, None)
        yield mlflow, runs
        mlflow.set_tracking_uri(None)


def _trained(place: int) -> torch.nn.Module:
    module = small_cnn()
    zoo = embedded_prompts()
    module.load_state_dict(zoo.state_dict(zoo.entries[place]))
    return module.eval()


def _log(mlflow, module: torch.nn.Module, name: str | None) -> str:
    with mlflow.start_run() as run:
        mlflow.pytorch.log_model(
            module,
            name="net",
            registered_model_name=name,
            serialization_format="pickle",
            pip_requirements=["torch"],
        )
    return f"runs:/{run.info.run_id}/net"


def _evaluate(mlflow, model, **config):
    with mlflow.start_run() as run:
        result = mlflow.models.evaluate(
            model,
            IMAGES,
            targets=np.array([0, 1]),
            model_type="classifier",
            evaluators="sane",
            evaluator_config=config or None,
        )
    return result, mlflow.get_run(run.info.run_id).data


@pytest.mark.slow
def test_a_registered_model_is_evaluated_by_its_weights(store, network) -> None:
    mlflow, _ = store
    result, data = _evaluate(mlflow, "models:/digits/1")
    told = Host.installed().predict(network)
    categories = {name for name, x in told.items() if isinstance(x, CategoryEstimate)}
    known = {name for name, x in told.items() if x.in_distribution}
    assert known & categories and known - categories
    for name, x in told.items():
        assert data.metrics[f"sane/{name}.in_distribution"] == x.in_distribution
        assert (f"sane/{name}.coverage" in data.metrics) == x.in_distribution
        assert (f"sane/{name}" in data.metrics) == (name in known - categories)
        assert (f"sane.{name}" in data.tags) == (name in known & categories)
    for name in known - categories:
        found = [data.metrics[f"sane/{name}{end}"] for end in ("", ".low", ".high", ".coverage")]
        assert found == pytest.approx([told[name].value, *told[name].interval, told[name].coverage])
    for name in known & categories:
        assert data.tags[f"sane.{name}"] == told[name].value
        assert data.tags[f"sane.{name}.set"] == ", ".join(told[name].set)
    assert data.metrics["sane/faults"] == 0
    assert data.tags["sane.health"] == "healthy"
    assert data.metrics["sane/registered.compared"] == 2  # not with itself
    assert data.tags["sane.registered"] == "models:/digits/2"
    assert data.tags["sane.registered.relation"] == "weights of one origin"
    assert data.metrics.items() >= result.metrics.items()
    report = json.loads(mlflow.artifacts.load_text(f"runs:/{result.run_id}/sane.json"))
    assert report["estimates"].keys() == told.keys()


@pytest.mark.slow
def test_a_source_is_evaluated_without_loading_a_model(store, monkeypatch) -> None:
    mlflow, runs = store

    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", refuse)
    _, data = _evaluate(mlflow, None, source=runs["broken"], registered=0)
    assert data.metrics["sane/faults"] >= 1
    assert "not finite" in data.tags["sane.health"]
    assert "not finite" in data.tags["sane.not_predicted"]
    assert not any(key.startswith("sane/registered") for key in data.metrics)


@pytest.mark.slow
def test_what_is_no_network_is_a_warning_and_a_wrong_setting_an_error(store, caplog) -> None:
    mlflow, _ = store
    with caplog.at_level(logging.WARNING, "sane_mlflow"), pytest.raises(mlflow.MlflowException):
        _evaluate(mlflow, lambda images: images)
    assert "evaluator_config={'source'" in caplog.text
    with pytest.raises(UsageError, match="may hold"):
        _evaluate(mlflow, None, source="models:/digits/1", registered="all")
    with pytest.raises(UsageError, match="may hold"):
        _evaluate(mlflow, None, source="models:/digits/1", compared=3)
    with pytest.raises(SourceError, match="MLflow does not give it"):
        _evaluate(mlflow, None, source="models:/digits/9")


@pytest.mark.slow
def test_names_of_the_store_are_networks(store, host) -> None:
    mlflow, runs = store
    stored = {path: path.stat().st_mtime_ns for path in _files(mlflow)}
    for name in ("models:/stranger/1", runs["stranger"], f"{runs['stranger']}/data/model.pth"):
        graph = host.open(name)
        for key, tensor in _trained(2).state_dict().items():
            assert torch.equal(graph.state_dict()[key], tensor)
        assert f"downloaded from {name} (MLflow)" in graph.notes
    assert {path: path.stat().st_mtime_ns for path in _files(mlflow)} == stored


def _files(mlflow) -> list[Path]:
    folder = Path(mlflow.get_tracking_uri().removeprefix("file:"))
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "name", ["models:/none/1", "models:/digits/9", "runs:/123/net", "models:/"]
)
def test_what_the_store_has_not_is_one_sentence(name: str, host) -> None:
    with pytest.raises(SourceError, match="MLflow does not give it"):
        host.open(name)


def test_a_run_without_a_path_is_wrong_usage(host) -> None:
    with pytest.raises(UsageError, match="runs:/ID/path"):
        host.open("runs:/123")


@pytest.mark.slow
def test_a_store_that_is_not_there_is_not_made(store, host, tmp_path) -> None:
    mlflow, _ = store
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        with pytest.raises(SourceError, match="does not exist"):
            host.open("models:/digits/1")
    finally:
        mlflow.set_tracking_uri(before)
    assert not [*tmp_path.iterdir()]


def test_without_mlflow_a_sentence_says_how_to_install_it(host, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SourceError, match="pip install mlflow"):
        host.open("models:/digits/1")


def test_the_plugin_is_light_and_declines_other_names(host) -> None:
    check_light_import("sane_mlflow")
    plugin = sane_mlflow.sane_plugin(host)
    for other in ("models", "runs:x", "models.pt", small_cnn(), {}):
        assert plugin.sane_open(other) is None
