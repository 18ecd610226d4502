"""Every code block of the README and of docs is a test; those of a page run in order, in a folder of its own.

Sybil finds them: it runs the Python blocks of a page in one namespace, takes evaluators for other languages,
and has skips with reasons. pytest-examples, pytest-markdown-docs and mktestdocs lack at least one of these.
"""

import gc
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).parent
# What pages change of the user's own settings, they change in their folder.
_FOLDERS = ("SANE_PLUGINS_CONFIG", "LLM_USER_PATH", "HATCH_CONFIG_DIR")
_HUGGING_FACE = "hugging_face"
_HOSTS = {_HUGGING_FACE: ("huggingface_hub", "hf")}  # package and program of pages with other names
_LIBRARIES = ("lightning", "onnx_ir", "torch_pruning")  # pages of hosts that have no command to run
# Blocks draw 4 candidates, not 16: more take a minute and run no other code. A block's own number wins.
_FEW = """sane-init() {
    case "$1" in
        verify) command sane-init "$@" ;;
        *) command sane-init --samples 4 "$@" ;;
    esac
}
"""
_NAMED = RawFencedCodeBlockLexer(re.compile(r'\w+ title="(?P<title>[^"]+)"\n'))


def run_in_shell(example: Example) -> None:
    """Run a block of commands in the page's folder, with the scripts of this environment, up to a failure."""
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", _FEW + example.parsed],
        env={**os.environ, "PATH": scripts},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{example.parsed}\n{done.stdout}\n{done.stderr}"


def write_file(example: Example) -> None:
    """Write a block that has a file's name as its title."""
    title, text = example.parsed
    Path(title).write_text(text)


def named_files(document: Document) -> Iterator[Region]:
    """Find the blocks that are files, as mkdocs-material shows them: ```python title="train.py"."""
    for region in _NAMED(document):
        lexemes = region.lexemes
        yield Region(
            region.start, region.end, (lexemes["title"], str(lexemes["source"])), write_file
        )


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser("sh", run_in_shell),
        named_files,
        SkipParser(),
    ],
    patterns=["README.md", "docs/**/*.md", "docs/*.md"],
    fixtures=["page"],
).pytest()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all blocks as slow, and begin with the files that have most slow tests.

    Commands take seconds, and later blocks of a page need what they write. What runs last should be short:
    of several processes, none then waits for another.
    """
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.slow)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Keep what collecting made out of garbage collection: no test frees it, every pass visits it."""
    gc.collect()
    gc.freeze()


def _require_host(name: str) -> None:
    """Skip a page of a program that is not installed, or whose fixtures are not."""
    package, program = _HOSTS.get(name, (name, name))
    is_program = name not in _LIBRARIES
    if importlib.util.find_spec(package) is None or (is_program and shutil.which(program) is None):
        pytest.skip(f"HOST ABSENT: {name}; run tox -e hosts")
    if name == "pytest" and not entry_points(group="pytest11", name="sane"):
        pytest.skip("FIXTURES ABSENT: install this version of sane-plugins")
    beside = str(Path(sys.executable).parent)
    if name == _HUGGING_FACE and shutil.which("hf-sane", path=beside) is None:
        pytest.skip("PROGRAM ABSENT: install this version of sane-plugins")
    if name == "mlflow" and not entry_points(group="mlflow.model_evaluator", name="sane"):
        pytest.skip("EVALUATOR ABSENT: install this version of sane-plugins")


def _keep_home(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have `hf` keep its cache and its extensions in a folder, and ask the network for nothing."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        patch.delenv(variable, raising=False)
    for variable in ("HOME", "HF_HOME"):
        patch.setenv(variable, str(folder))
    for variable in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_UPDATE_CHECK"):
        patch.setenv(variable, "1")


@pytest.fixture(scope="module")
def page(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Make the folder of a page, with what its reader has, and work in it."""
    from pages import prepare  # needs torch, which collecting must not

    name = str(request.path.relative_to(ROOT).with_suffix(""))
    if request.path.parent.name == "hosts":
        _require_host(request.path.stem)
    folder = tmp_path_factory.mktemp(name.replace("/", "-"))
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for variable in _FOLDERS:
            patch.setenv(variable, str(folder / ".settings"))
        patch.setenv("DO_NOT_TRACK", "1")
        if request.path.stem == _HUGGING_FACE:
            _keep_home(folder / ".settings", patch)
        patch.syspath_prepend(folder)
        prepare(name, folder)
        if any(folder.glob("*.dist-info")):  # the working directory alone installs nothing
            path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
            patch.setenv("PYTHONPATH", path)
        yield folder
    for module in set(sys.modules) - before:  # pages may give different modules one name
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(folder)):
            del sys.modules[module]
