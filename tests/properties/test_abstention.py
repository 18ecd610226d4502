"""Wherever estimates are told, those of an unknown kind have a rank or a reason; a value by force only."""

import csv
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from sane_plugins import Host, hookimpl
from sane_plugins.architectures import import_torchvision
from sane_plugins.cli.main import main
from sane_plugins.live_modules import PredictWhileTraining
from sane_plugins.properties import (
    UNLIKE,
    AnyEstimate,
    CategoryEstimate,
    Estimate,
    Rank,
    estimate_record,
    estimate_text,
    is_withheld,
    rank_all,
    withheld_note,
)

ABSENT = "HOST ABSENT: run tox -e hosts"
KNOWN, BETTER, WORSE = "known", "better", "worse"
WIDTHS = {KNOWN: 64, BETTER: 5, WORSE: 6}
# By network: value, low, high and class. No other text of an output holds these.
GUESSES = {
    KNOWN: ("0.3217", "0.2713", "0.4519", "zebra"),
    BETTER: ("0.7361", "0.6127", "0.8519", "ibex"),
    WORSE: ("0.5391", "0.4271", "0.6743", "okapi"),
}


class FixedHead:
    """A head of a plugin that says of each network what is written above."""

    features, sane, scores = "statistics", "", {}
    score, encoders = "R^2", ("statistics",)

    def __init__(self, name: str) -> None:
        self.property = name

    def estimate(self, features: Mapping[str, np.ndarray]) -> AnyEstimate:
        structure = tuple(map(float, features["structure"]))
        size = 2 ** structure[-1]
        network = min(WIDTHS, key=lambda x: abs(size - sum(p.numel() for p in net(x).parameters())))
        *numbers, name = GUESSES[network]
        value, low, high = map(float, numbers)
        common = {
            "property": self.property,
            "coverage": 0.9,
            "features": self.features,
            "in_distribution": network == KNOWN,
            "typicality": 0.5 if network == KNOWN else 0.0,
        }
        if self.property == "animal":
            shares = {name: 0.75, "auk": 0.25}
            return CategoryEstimate(**common, value=name, set=(name,), probabilities=shares)
        score = {KNOWN: 0.0, BETTER: 2.0, WORSE: 1.0}[network]
        return Estimate(
            **common, value=value, interval=(low, high), unit="", score=score, structure=structure
        )


class FixedHeads:
    @hookimpl
    def sane_property_heads(self) -> dict[str, FixedHead]:
        return {name: FixedHead(name) for name in ("quality", "animal")}

    @hookimpl
    def sane_engines(self):
        from enginework import inline

        return {"inline": inline}


def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    width = WIDTHS[name]
    return nn.Sequential(nn.Linear(9, width), nn.ReLU(), nn.Linear(width, 4)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets") / "nets"
    folder.mkdir()
    for name in WIDTHS:
        save_file(net(name).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host has the heads above, and no others."""
    make = Host.installed

    def with_heads(*arguments: object) -> Host:
        host = make(*arguments)
        host.register(FixedHeads(), "fixed-heads")
        monkeypatch.setattr(host, "property_heads", FixedHeads().sane_property_heads)
        return host

    monkeypatch.setattr(Host, "installed", with_heads)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def predict_table(folder: Path, force: bool, _: Path) -> str:
    return run("predict", folder, *["--force"] * force)


def predict_json(folder: Path, force: bool, _: Path) -> str:
    return run("predict", folder, "--json", *["--force"] * force)


def predict_csv(folder: Path, force: bool, _: Path) -> str:
    text = run("predict", folder, "--csv", *["--force"] * force)
    rows = [{key: x for key, x in row.items() if x} for row in csv.DictReader(text.splitlines())]
    return "\n".join(
        f"{row} {'rank ' + row['quality_rank'] if 'quality_rank' in row else ''}" for row in rows
    )


def run_predict(folder: Path, force: bool, out: Path) -> str:
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra 'parquet' is not installed")
    run("run", "predict", folder, "-o", out, "--engine", "inline", *["--force"] * force)
    return "\n".join(str(pq.read_table(part).to_pylist()) for part in out.glob("part-*"))


def rows_of_ray_data(folder: Path, force: bool, _: Path) -> str:
    pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    from sane_plugins.folder_runs import NetworkRows, PredictJob

    rows = NetworkRows(PredictJob(force=force))
    return "\n".join(str(rows(path)) for path in sorted(folder.iterdir()))


def report_page(folder: Path, force: bool, out: Path) -> str:
    page = out.with_suffix(".html")
    run("report", folder, "-o", page, "--property", "quality", *["--force-values"] * force)
    return page.read_text(encoding="utf-8")


def report_json(folder: Path, force: bool, _: Path) -> str:
    return run("report", folder, "--json", "--property", "quality", *["--force-values"] * force)


def watched_training(_: Path, force: bool, __: Path) -> str:
    logged: list[object] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for name in WIDTHS:
            watch = PredictWhileTraining(log=lambda *x: logged.append(x), force=force)
            watch(net(name))
    return f"{logged} {[str(x.message) for x in warned]}"


def lightning(_: Path, force: bool, __: Path) -> str:
    if "torchvision" not in sys.modules and find_spec("torchvision") is not None:
        import_torchvision()  # torchmetrics imports it, also one whose operators do not fit this torch
    pytest.importorskip("lightning.pytorch", reason=ABSENT)
    from sane_lightning import SaneCallback

    logged: list[object] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for name in WIDTHS:
            module, trainer = net(name), SimpleNamespace(is_global_zero=True, current_epoch=0)
            module.log_dict = lambda numbers, **_: logged.append(numbers)
            SaneCallback(force=force).on_train_epoch_end(trainer, module)
    return f"{logged} {[str(x.message) for x in warned]}"


def kedro(folder: Path, force: bool, out: Path) -> str:
    pytest.importorskip("kedro", reason=ABSENT)
    from sane_kedro import SaneHooks

    class Loader(dict):
        config_patterns: ClassVar[dict[str, list[str]]] = {}

    names, hooks, lines = [*WIDTHS], SaneHooks(), []
    settings = {"outputs": names, "report": "told.json"} | ({"force": True} if force else {})
    out.mkdir()
    context = SimpleNamespace(config_loader=Loader(sane=settings), project_path=out)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("sane_kedro")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        hooks.after_context_created(context)
        hooks.before_pipeline_run()
        hooks.after_node_run({name: str(folder / f"{name}.safetensors") for name in names})
        hooks.after_pipeline_run(None)
    finally:
        logger.removeHandler(handler)
    assert len(lines) == len(names)
    assert (UNLIKE in "".join(lines)) != force
    return "\n".join([*lines, (out / "told.json").read_text()])


def mlflow(folder: Path, force: bool, _: Path) -> str:
    pytest.importorskip("mlflow", reason=ABSENT)
    from sane_mlflow import evaluator

    logged: list[object] = []

    class Client:
        def log_batch(self, _: str, metrics: list, tags: list) -> None:
            logged.extend((x.key, x.value) for x in (*metrics, *tags))

        def log_dict(self, _: str, report: dict, __: str) -> None:
            logged.append(json.dumps(report))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "MlflowClient", Client)
        for path in sorted(folder.iterdir()):
            config = {"source": str(path), "registered": 0, **({"force": True} if force else {})}
            evaluator.SaneEvaluator().evaluate(run_id="0", evaluator_config=config)
    return "\n".join(map(str, logged))


NUMBERS_ALONE = (watched_training, lightning)
PLACES = (
    predict_table,
    predict_json,
    predict_csv,
    run_predict,
    rows_of_ray_data,
    report_page,
    report_json,
    kedro,
    mlflow,
    *NUMBERS_ALONE,
)


def _shown(marker: str, text: str) -> bool:
    """Return whether a number, in three digits or more, or a name is in a text."""
    return marker in text or (marker[0] == "0" and f"{float(marker):.3g}" in text)


@pytest.mark.filterwarnings("ignore")  # of the host programs
@pytest.mark.parametrize("force", [False, True], ids=["told", "forced"])
@pytest.mark.parametrize("place", PLACES, ids=lambda x: x.__name__)
def test_no_place_tells_the_value_of_an_unknown_kind_unless_it_is_forced(
    place: Callable[[Path, bool, Path], str], force: bool, folder: Path, tmp_path: Path
) -> None:
    text = place(folder, force, tmp_path / "out")
    counted = slice(0, 1) if place in NUMBERS_ALONE else slice(0, 4)
    assert all(_shown(x, text) for x in GUESSES[KNOWN][counted])
    for network in (BETTER, WORSE):
        told = [x for x in GUESSES[network] if _shown(x, text)]
        assert told == ([*GUESSES[network][counted]] if force else [])
    if not force:
        ranks = re.findall(r"rank[\"']?:? ([12])\b", text)
        assert UNLIKE in text or {*ranks} == {"1", "2"}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("network", [BETTER, WORSE])
def test_compare_claims_and_tells_nothing_of_an_unknown_kind(folder, network, as_json) -> None:
    paths = (folder / f"{name}.safetensors" for name in (KNOWN, network))
    text = run("compare", *paths, "--property", "quality", *["--json"] * as_json)
    assert UNLIKE in text
    assert _shown(GUESSES[KNOWN][0], text)
    assert not any(_shown(x, text) for x in GUESSES[network])


@given(
    value=st.floats(-1e6, 1e6),
    half=st.floats(0, 1e6),
    is_known=st.booleans() | st.builds(np.bool_, st.booleans()),
    force=st.booleans(),
    rank=st.none() | st.builds(Rank, st.integers(1, 9), st.integers(9, 99)),
)
def test_what_is_withheld_is_in_no_record_and_no_text(value, half, is_known, force, rank) -> None:
    common = {"coverage": 0.9, "in_distribution": is_known, "features": "statistics"}
    number = Estimate(
        property="n", value=value, unit="", interval=(value - half, value + half), **common
    )
    name = CategoryEstimate(
        property="c", value="okapi", probabilities={"okapi": 1.0}, set=("okapi",), **common
    )
    is_told = bool(force or is_known)
    for estimate in (number, name):
        record = estimate_record(estimate, force=force, rank=rank)
        json.dumps(record)
        assert is_withheld(estimate, force) is (not is_told)
        assert (record["value"] == estimate.value) is is_told
        assert (record["withheld"] is None) is is_told
        left = {key for key in ("interval", "set", "probabilities") if record.get(key) is not None}
        assert bool(left) is is_told
        text = estimate_text(estimate, force=force, rank=rank)
        why = f"rank {rank.place} of {rank.of}" if rank else UNLIKE
        assert (text == why) is (not is_told)
    note = withheld_note({"n": number, "c": name}, force)
    assert note.startswith("no value of n, c is told") is (not is_told)
    assert bool(note) is (not is_told)
    assert bool(rank_all({"a": {"n": number}, "b": {"n": name}})["n"]) is False  # no structure
