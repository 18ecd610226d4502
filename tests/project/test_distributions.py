"""What a release refuses: a file too few, too many or changed in a wheel or an sdist, and wrong metadata."""

import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import check_distributions as checks
import pytest

INFO = "sane_plugins-0.1.0.dist-info"
PROJECT = {
    "name": "sane-plugins",
    "version": "0.1.0",
    "description": "Weights as data",
    "readme": "README.md",
    "requires-python": ">=3.10",
    "license": "Apache-2.0",
    "license-files": ["LICENSE"],
    "keywords": ["onnx", "model zoo"],
    "classifiers": ["Typing :: Typed"],
    "dependencies": ["torch>=2.8"],
    "optional-dependencies": {"onnx": ["onnx>=1.21"], "all": ["sane-plugins[onnx]"]},
    "scripts": {"sane-init": "sane_plugins.cli.initialize:main"},
    "entry-points": {"sane_plugins": {"onnx": "sane_onnx"}},
}
METADATA = """Metadata-Version: 2.4
Name: sane-plugins
Version: 0.1.0
Summary: Weights as data
License-Expression: Apache-2.0
License-File: LICENSE
Keywords: model zoo,onnx
Classifier: Typing :: Typed
Requires-Python: >=3.10
Requires-Dist: torch>=2.8
Provides-Extra: all
Requires-Dist: onnx>=1.21; extra == 'all'
Provides-Extra: onnx
Requires-Dist: onnx>=1.21; extra == 'onnx'

# Weights – as data
"""
ENTRY_POINTS = """[console_scripts]
sane-init = sane_plugins.cli.initialize:main

[sane_plugins]
onnx = sane_onnx
"""
TRACKED = {
    ".ci/run": b"tox",
    "LICENSE": b"Apache",
    "README.md": "# Weights – as data\n".encode(),
    "adapters/sane_onnx/__init__.py": b"",
    "adapters/sane_onnx/py.typed": b"",
    "sane_plugins/data/gate.json": b"{}",
    "sane_plugins/py.typed": b"",
    "tests/test_host.py": b"",
}
WHEEL = {
    "sane_onnx/__init__.py": b"",
    "sane_onnx/py.typed": b"",
    "sane_plugins/data/gate.json": b"{}",
    "sane_plugins/py.typed": b"",
    f"{INFO}/METADATA": METADATA.encode(),
    f"{INFO}/WHEEL": b"",
    f"{INFO}/RECORD": b"",
    f"{INFO}/entry_points.txt": ENTRY_POINTS.encode(),
    f"{INFO}/licenses/LICENSE": b"Apache",
}


def refused(wheel: dict[str, bytes]) -> list[str]:
    return checks.wheel_problems(wheel, TRACKED, PROJECT)


def without(name: str) -> dict[str, bytes]:
    return {other: content for other, content in WHEEL.items() if other != name}


def test_a_wheel_of_the_tracked_packages_is_let_through() -> None:
    assert refused(WHEEL) == []


@pytest.mark.parametrize("name", WHEEL)
def test_a_wheel_that_lacks_any_file_is_refused(name: str) -> None:
    assert f"{name}: missing" in refused(without(name))


@pytest.mark.parametrize("name", ["tests/test_host.py", "sane_plugins/left_over.py", "LICENSE"])
def test_a_wheel_with_a_file_too_many_is_refused(name: str) -> None:
    assert refused({**WHEEL, name: b""}) == [f"{name}: not tracked, or not meant to be here"]


def test_a_wheel_with_other_bytes_is_refused() -> None:
    (told,) = refused({**WHEEL, "sane_plugins/data/gate.json": b"{ }"})
    assert told.startswith("sane_plugins/data/gate.json")


def test_a_package_without_type_marker_is_refused() -> None:
    tracked = {k: v for k, v in TRACKED.items() if k != "adapters/sane_onnx/py.typed"}
    found = checks.wheel_problems(without("sane_onnx/py.typed"), tracked, PROJECT)
    assert found == ["sane_onnx/py.typed: missing, though the classifiers say Typed"]


@pytest.mark.parametrize(
    ("line", "instead", "field"),
    [
        ("Requires-Python: >=3.10\n", "", "requires_python"),
        ("torch>=2.8", "torch", "requires_dist"),
        ("Requires-Dist: onnx>=1.21; extra == 'all'\n", "", "requires_dist"),
        ("Provides-Extra: onnx\n", "", "provides_extra"),
        ("License-File: LICENSE\n", "", "license_files"),
        ("as data\n", "as data, cut\n", "description"),
        ("Version: 0.1.0", "Version: 0.1.1", "version"),
    ],
)
def test_metadata_unlike_pyproject_are_refused(line: str, instead: str, field: str) -> None:
    assert line in METADATA
    head, _, tail = METADATA.rpartition(line)
    found = refused({**WHEEL, f"{INFO}/METADATA": (head + instead + tail).encode()})
    assert len(found) == 1
    assert found[0].startswith(f"METADATA: {field} ")


def test_entry_points_unlike_pyproject_are_refused() -> None:
    cut = ENTRY_POINTS.replace("onnx = sane_onnx\n", "")
    (told,) = refused({**WHEEL, f"{INFO}/entry_points.txt": cut.encode()})
    assert told.startswith("entry_points.txt")


def test_an_sdist_holds_all_but_what_only_the_hosting_needs() -> None:
    whole = {**TRACKED, "PKG-INFO": b""}
    assert checks.sdist_problems(whole, TRACKED) == [
        ".ci/run: not tracked, or not meant to be here"
    ]
    del whole[".ci/run"]
    assert checks.sdist_problems(whole, TRACKED) == []
    del whole["tests/test_host.py"]
    assert checks.sdist_problems(whole, TRACKED) == ["tests/test_host.py: missing"]


def test_a_path_of_the_building_machine_is_found() -> None:
    places = [Path("/srv/builder"), Path("/")]
    files = {"a": b'{"from": "/srv/builder/zoo"}', "b": b"/srv/builders/zoo /etc"}
    assert checks.paths_inside(files, places) == ["a: holds the path /srv/builder/"]


def test_archives_are_read_by_the_names_that_the_tree_has(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("sane_plugins/py.typed", b"1")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as sdist:
        member = tarfile.TarInfo("sane_plugins-0.1.0/sane_plugins/py.typed")
        member.size = 1
        sdist.addfile(member, BytesIO(b"1"))
    expected = {"sane_plugins/py.typed": b"1"}
    assert checks.read_wheel(tmp_path / "x.whl") == expected
    assert checks.read_sdist(tmp_path / "x.tar.gz") == expected
