"""Kedro runs a pipeline, and our hooks tell what the networks that it makes are."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("kedro", reason="HOST ABSENT: run tox -e hosts")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Kedro's own warnings

FILES = {
    "pyproject.toml": """
[tool.kedro]
package_name = "sane_kedro_project"
project_name = "project"
kedro_init_version = "{version}"
source_dir = "src"
""",
    "src/sane_kedro_project/__init__.py": "",
    "src/sane_kedro_project/settings.py": """
from importlib.metadata import entry_points

import sane_kedro

is_found = "sane" in {x.name for x in entry_points(group="kedro.hooks")}  # else: not installed
HOOKS = () if is_found else (sane_kedro.hooks,)
""",
    "src/sane_kedro_project/pipeline_registry.py": """
import torch
from kedro.pipeline import node, pipeline
from sane_plugins.architectures import small_cnn


def train():
    torch.manual_seed(0)
    return small_cnn(), "no network"


def register_pipelines():
    return {"__default__": pipeline([node(train, None, ["model", "text"], name="train")])}
""",
    "conf/base/sane.yml": "outputs: [model, text]\nreport: out/sane.json\n",
    "conf/base/catalog.yml": "",
    "conf/local/.gitkeep": "",
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    import kedro

    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{version}", kedro.__version__))
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("sane_kedro_project")]:
        del sys.modules[name]
    os.environ.pop("PYTHONPATH.kedro", None)


def _run(project: Path) -> None:
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(project)
    with KedroSession.create(project_path=project) as session:
        session.run()


def test_a_pipeline_tells_what_its_networks_are(project, caplog) -> None:
    import sane_kedro

    from sane_plugins import Host
    from sane_plugins.architectures import small_cnn

    with caplog.at_level(logging.INFO, logger="sane_kedro"):
        _run(project)
    import torch

    torch.manual_seed(0)
    told = Host.installed().predict(small_cnn())
    report = json.loads((project / "out" / "sane.json").read_text())
    assert report.keys() == {"model"}
    assert {name: x["value"] for name, x in report["model"].items()} == {
        name: x.value for name, x in told.items()
    }
    assert sane_kedro.hooks.estimates.keys() == {"model"}


def test_without_its_file_the_hooks_do_nothing_and_a_wrong_file_is_a_sentence(project) -> None:
    import sane_kedro

    from sane_plugins import UsageError

    settings = project / "conf" / "base" / "sane.yml"
    settings.write_text("outputs: model\n")
    with pytest.raises(UsageError, match="list of names of datasets"):
        _run(project)
    settings.unlink()
    _run(project)
    assert not sane_kedro.hooks.estimates
