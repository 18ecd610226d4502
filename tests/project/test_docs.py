"""Docs that cannot rot: tables say what the code says, blocks are tested or say why not, links lead on."""

import importlib.util
import re
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```([^\n]*)\n.*?^```$", re.MULTILINE | re.DOTALL)
_SKIP = re.compile(r"<!--+ *skip:(.*?)--+>")
_LANGUAGES = ("python", "sh", "text")  # text is output, or how a command is called
_MOST_SKIPS = 6


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location(
        "reference_pages", ROOT / "tools" / "release" / "reference_pages.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference_pages"] = module
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_what_the_code_says(reference) -> None:
    for path in reference.pages():
        text = path.read_text()
        assert reference.filled(text) == text, (
            f"{path.name} is out of date: run python tools/release/reference_pages.py"
        )


def test_every_table_is_on_a_page(reference) -> None:
    shown = re.findall(r"<!-- generated: (.+?) -->", "".join(x.read_text() for x in PAGES))
    assert sorted(shown) == sorted(reference.tables())


def test_every_option_tells_what_it_is_for(reference) -> None:
    for name, command in reference.commands():
        mute = [x.name for x in command.params if isinstance(x, click.Option) and not x.help]
        assert not mute, f"{name}: {mute}"


def test_variables_of_the_environment_that_the_code_reads_are_documented() -> None:
    sources = [path.read_text() for path in (ROOT / "sane_plugins").rglob("*.py")]
    read = set(re.findall(r'environ\.get\(\s*"(SANE_\w+)"', "".join(sources)))
    page = (ROOT / "docs" / "how-to" / "embed-in-a-host.md").read_text()
    assert read
    assert read == set(re.findall(r"^\| `(SANE_\w+)", page, re.MULTILINE))


def test_every_block_is_run_or_is_a_file_or_output() -> None:
    for path in PAGES:
        for info in _FENCE.findall(path.read_text()):
            # Sketches of the explanation have no language: they are neither code nor output.
            is_sketch = not info and "explanation" in path.parts
            assert info in _LANGUAGES or ' title="' in info or is_sketch, f"{path.name}: ```{info}"


def test_blocks_that_no_test_runs_are_few_and_say_why() -> None:
    found = [
        (path.name, text.strip()) for path in PAGES for text in _SKIP.findall(path.read_text())
    ]
    assert len(found) <= _MOST_SKIPS, found
    unreasoned = [x for x in found if not re.fullmatch(r'next "\w.{20,}"', x[1])]
    assert not unreasoned, 'write <!-- skip: next "reason" -->'


def test_links_between_files_lead_somewhere() -> None:
    for path in PAGES:
        prose = _FENCE.sub("", path.read_text())
        for target in re.findall(r"\]\(([^)#\s]+)", prose):
            if not re.match(r"https?:", target):
                assert (path.parent / target).exists(), f"{path.name}: {target}"
