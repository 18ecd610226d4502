"""What benchmarks of property heads share: zoos, features kept between runs, baselines, scores."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Memory  # type: ignore[import-untyped]
from scipy.stats import kendalltau
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from zoos import RECIPES

from sane_plugins.autoencoder import SANE, SANEConfig, embedded_sane, fingerprint, load_sane
from sane_plugins.errors import ZooError
from sane_plugins.features import encoders, layer_statistics
from sane_plugins.pretraining import PretrainOptions
from sane_plugins.properties import FeatureDataset
from sane_plugins.properties.dataset import STRUCTURE, group_folds
from sane_plugins.properties.regressors import Array
from sane_plugins.tasks import Task, load_task
from sane_plugins.weights import WeightGraph
from sane_plugins.zoo import Zoo, evaluation_pool, import_published, is_zoo

RUNS = Path(__file__).parents[1] / "runs"
RESULTS = Path(__file__).parent / "results"
PUBLISHED = ("mnist-cnn", "cifar10-cnn")
TRAINED = ("animals-cnn", "mnist-mlp", "mnist-resnet")
BEHAVIOUR = 0.1
PROPERTIES = ("test_accuracy", "epoch", "gap")
RIVAL = "s(W), boosting"
BASELINES = ("W, ridge", "s(W), ridge", RIVAL)
Measure = Callable[[WeightGraph], Array]
MEMORY = Memory(RUNS / "memo", verbose=0)
PENALTIES = np.logspace(-1, 6, 8)


def zoos(data: Path, trained: Path, names: list[str] | None = None) -> list[Zoo]:
    """Return the finite networks of the published zoos and of those trained here, as far as they are there."""
    found = []
    for name in names or [*PUBLISHED, *TRAINED]:
        if name in PUBLISHED:
            zoo = import_published(data / "zoos" / f"{name}.json")
        elif is_zoo(trained / name):
            zoo = Zoo.open(trained / name)
        else:
            print(f"{name}: left out, there is no such zoo in {trained}", file=sys.stderr)
            continue
        found.append(_finite(zoo))
    return found


def _finite(zoo: Zoo) -> Zoo:
    kept = zoo.where(lambda entry: bool(entry.properties["finite"]))
    dropped = len(zoo) - len(kept)
    print(f"{zoo.name}: {dropped} of {len(zoo)} networks dropped, not finite", file=sys.stderr)
    return kept


def task_of(zoo: Zoo, data: Path) -> Task:
    """Return the images that a zoo's networks were trained on, at the size that they take."""
    if zoo.name in RECIPES:
        made = RECIPES[zoo.name]
        return load_task(data / "datasets" / f"{made.dataset}.npz", size=made.size)
    return load_task(data / "datasets" / f"{zoo.name.removesuffix('-cnn')}.npz")


def outside_pool(zoo: Zoo) -> Zoo:
    """Return the networks that pretraining may see."""
    pool = evaluation_pool(zoo)
    return zoo.where(lambda entry: entry.network not in pool)


def recipe(steps: int) -> tuple[SANEConfig, PretrainOptions]:
    """Return how a SANE of toys is trained, of which the ablation and what is pretrained anew are variants."""
    return SANEConfig(), PretrainOptions(steps=steps, behaviour=BEHAVIOUR)


def targets(zoo: Zoo, name: str) -> Array:
    """Return a property of every network of a zoo, (N,)."""
    return np.array([float(entry.properties[name]) for entry in zoo.entries])


def sane(path: Path | None) -> tuple[SANE, str]:
    """Return the SANE to test, and a note; without any, a random one keeps the rest measurable."""
    try:
        model = load_sane(path) if path else embedded_sane()
        return model, f"SANE: {path.name if path else 'embedded'}"
    except (ZooError, FileNotFoundError):
        if path:
            raise
    torch.manual_seed(0)
    return SANE(SANEConfig()).eval(), "SANE: NONE, random weights in its place"


def features(zoo: Zoo, model: SANE) -> FeatureDataset:
    """Return flat weights, s(W), statistics and SANE features of a zoo, kept in runs/ between calls."""
    options, encoder = encoders.EncodeOptions(), encoders.SaneEncoder(model)
    own: dict[str, Measure] = {"sane": lambda graph: encoder.features(graph, options).numpy()}
    found = plain_features(zoo) | _kept(zoo, f"sane-{fingerprint(model)}", own)
    return FeatureDataset(features=found, networks=[entry.network for entry in zoo.entries])


def plain_features(zoo: Zoo) -> dict[str, Array]:
    """Return flat weights, s(W), statistics and structure of a zoo, kept in runs/ between calls."""
    return _kept(zoo, "features", PLAIN)


def _kept(zoo: Zoo, what: str, measures: Mapping[str, Measure]) -> dict[str, Array]:
    path = RUNS / f"{what}-{zoo.name}-{_key(zoo)}.npz"
    if path.exists():
        return dict(np.load(path))
    graphs = (zoo.graph(entry) for entry in zoo.entries)
    rows = [{name: measure(graph) for name, measure in measures.items()} for graph in graphs]
    found = {name: np.stack([row[name] for row in rows]) for name in measures}
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **found)  # type: ignore[arg-type]
    return found


def _flat(graph: WeightGraph) -> Array:
    return torch.cat([x.ravel().float() for _, x in graph.items()]).numpy()


PLAIN: Mapping[str, Measure] = {
    "W": _flat,
    "s(W)": lambda graph: layer_statistics.unterthiner_statistics(graph).numpy(),
    "statistics": lambda graph: layer_statistics.statistics(graph).numpy(),
    STRUCTURE: layer_statistics.structure,
}


def _key(zoo: Zoo) -> str:
    """Return what changes when the features would: code, and the zoo's networks."""
    parts = code(
        "encoders", "sane_features", "layer_statistics", "matrix_statistics", "random_probes"
    )
    digest, written = hashlib.sha256(parts.encode()), zoo.weights.stat()
    digest.update("".join(entry.key for entry in zoo.entries).encode())
    digest.update(f"{written.st_size} {written.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def code(*modules: str, beside: str = encoders.__file__) -> str:
    """Return what identifies the source of modules of `sane_plugins.features`, or those in the room of a file."""
    paths = [next(Path(beside).parent.rglob(f"{name}.py")) for name in modules]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def digest(samples: FeatureDataset) -> str:
    """Return what identifies features and networks."""
    found = hashlib.sha256("".join(samples.networks).encode())
    for name, x in sorted(samples.features.items()):
        found.update(name.encode() + np.ascontiguousarray(x).tobytes())
    return found.hexdigest()


def baseline(name: str, fit: FeatureDataset, held: FeatureDataset, y: Array) -> Array:
    """Fit a baseline and return what it predicts for held-out networks; kept in runs/ between calls."""
    kind = name.split(",")[0]
    predicted = MEMORY.cache(_predicted)
    return np.asarray(
        predicted(name, fit.features[kind], list(fit.networks), y, held.features[kind])
    )


def _predicted(name: str, x: Array, networks: Sequence[str], y: Array, held: Array) -> Any:
    model = boosting(x, y) if name == RIVAL else ridge(x, networks, y)
    return model.predict(held)


def boosting(x: Array, y: Array) -> Any:
    """Fit the strongest baseline of the published zoos: 300 trees of depth 4, subsample 0.7."""
    return GradientBoostingRegressor(
        n_estimators=300, max_depth=4, subsample=0.7, random_state=0
    ).fit(x, y)


def ridge(x: Array, networks: Sequence[str], y: Array) -> Any:
    """Fit ridge regression whose penalty is chosen on networks that a fold holds out (paper section 4.1)."""
    folds = [(np.flatnonzero(~test), np.flatnonzero(test)) for test in group_folds(networks, 5, 0)]
    model = make_pipeline(StandardScaler(), Ridge())
    search = GridSearchCV(
        model, {"ridge__alpha": PENALTIES}, cv=folds, scoring="neg_mean_squared_error"
    )
    return search.fit(x, y)


def scores(truth: Array, predicted: Array) -> dict[str, float]:
    """Return R^2 and Kendall's tau; a constant prediction ranks nothing, its tau is 0."""
    left = float(((truth - predicted) ** 2).sum())
    r2 = 1 - left / float(((truth - truth.mean()) ** 2).sum())
    tau = float(kendalltau(truth, predicted).statistic)
    return {"r2": r2, "tau": tau if np.isfinite(tau) else 0.0}
