"""The pages of figures say what was measured, and nothing else."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location(
        "results_page", ROOT / "tools" / "release" / "results_page.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["results_page"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "made"), [("results.md", "results"), ("model-card.md", "card")])
def test_a_committed_page_is_what_its_script_gives(page, name: str, made: str) -> None:
    committed = (ROOT / "docs" / name).read_text()
    assert committed == getattr(page, made)(), "run python tools/release/results_page.py"


def test_every_measurement_is_on_the_page(page) -> None:
    named = {section.name for section in page.SECTIONS} | set(page.ELSEWHERE)
    assert {path.stem for path in page.RESULTS.glob("*.json")} <= named


def test_every_command_names_a_script_that_is_there(page) -> None:
    scripts = re.findall(r"python ([\w/]+\.py)", page.results())
    assert len(scripts) > 10
    assert not [name for name in scripts if not (ROOT / name).exists()]
