"""Damaged files of every form: whatever was done to them, a reader reads or refuses in one sentence.

`tests/fuzz/run.py` runs the same cases by the ten thousand, over real files, and under guard.
"""

import warnings
from pathlib import Path

import pytest

pytest.importorskip("onnx")
hypothesis = pytest.importorskip("hypothesis")

from fuzz import corpus, road  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sane_plugins.errors import SaneError  # noqa: E402

# The same cases in every run, and no time limit that a busy machine breaks. A number stands for a
# case as it is: there is no smaller one like it to look for.
quiet = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
numbers = st.integers(0, 2**32)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[corpus.Base], Path]:
    """Make the small files of each form, and those that nobody may read."""
    made = tmp_path_factory.mktemp("corpus")
    return corpus.corpus(made, None), corpus.make_secrets(made / "outside")


def _survive(files: tuple[list[corpus.Base], Path], folder: Path, form: str, number: int) -> None:
    bases, secrets = files
    base, strategy, path = road.prepare(number, 0, bases, folder / "case", secrets, form)
    hypothesis.note(f"{strategy} of {base.path.name}")
    hypothesis.event(_end(path))


def _end(path: Path) -> str:
    """Lead a file along the whole road; let out what is no plain refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            road.Road(path).walk()
    except SaneError as refusal:
        road.require_plain(refusal)
        return "refused"
    return "read"


@settings(quiet, max_examples=160)
@given(number=numbers)
def test_damaged_onnx_files(files, tmp_path: Path, number: int) -> None:
    _survive(files, tmp_path, "onnx", number)


@settings(quiet, max_examples=90)
@given(number=numbers)
def test_damaged_checkpoints(files, tmp_path: Path, number: int) -> None:
    _survive(files, tmp_path, "checkpoint", number)


@settings(quiet, max_examples=70)
@given(number=numbers, form=st.sampled_from(["safetensors", "sharded"]))
def test_damaged_safetensors_and_indices(files, tmp_path: Path, number: int, form: str) -> None:
    _survive(files, tmp_path, form, number)


@settings(quiet, max_examples=40)
@given(number=numbers)
def test_damaged_numpy_archives(files, tmp_path: Path, number: int) -> None:
    _survive(files, tmp_path, "npz", number)


@settings(quiet, max_examples=60)
@given(number=numbers, form=st.sampled_from(["torchscript", "exported"]))
def test_damaged_programs(files, tmp_path: Path, number: int, form: str) -> None:
    _survive(files, tmp_path, form, number)


@pytest.mark.parametrize("form", corpus.FORMATS)
def test_undamaged_files_come_all_the_way(files, tmp_path: Path, form: str) -> None:
    for base in files[0]:
        if base.form == form:
            road.Road(road.copied(base, tmp_path / "case")).walk()
