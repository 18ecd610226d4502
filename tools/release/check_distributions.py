"""What a wheel and an sdist must hold, and nothing else: the tracked files, byte for byte, and pyproject's metadata.

Each check returns its complaints, one line each; none means that all is well. A file that is missing from a wheel
shows only on the machine of who installed it, and one too many (tests, a stray package) shadows other packages there.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from packaging.metadata import parse_email
from packaging.requirements import Requirement

Files = Mapping[str, bytes]
SDIST_LEAVES_OUT = ".ci/"  # of use only where this repository is hosted


def read_wheel(path: Path) -> Files:
    """Return the files of a wheel by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_sdist(path: Path) -> Files:
    """Return the files of an sdist by their names below its one top folder."""
    with tarfile.open(path) as archive:
        opened = ((member.name, archive.extractfile(member)) for member in archive)
        return {name.partition("/")[2]: file.read() for name, file in opened if file}


def wheel_problems(wheel: Files, tracked: Files, project: Mapping[str, Any]) -> list[str]:
    """Compare a wheel with the tracked files of its packages and with the table `project` of pyproject."""
    info = f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    packages = _packages(tracked)
    expected = packages | {f"{info}/licenses/{x}": tracked[x] for x in project["license-files"]}
    generated = [f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")]
    problems = differences(wheel, expected, generated)
    markers = {name.partition("/")[0] + "/py.typed" for name in packages}
    problems += [
        f"{marker}: missing, though the classifiers say Typed"
        for marker in sorted(markers - expected.keys())
    ]
    if wheel.keys() >= set(generated):
        problems += metadata_problems(wheel[generated[0]], project, tracked)
        problems += entry_point_problems(wheel[generated[3]].decode(), project)
    return problems


def sdist_problems(sdist: Files, tracked: Files) -> list[str]:
    """Compare an sdist with all tracked files: sources, and what tests, docs and figures are made of."""
    expected = {k: v for k, v in tracked.items() if not k.startswith(SDIST_LEAVES_OUT)}
    return differences(sdist, expected, ["PKG-INFO"])


def differences(found: Files, expected: Files, generated: Iterable[str] = ()) -> list[str]:
    """Return what is missing, too much, or not equal; of generated files only that they are there."""
    names = {*expected, *generated}
    changed = [name for name in expected.keys() & found.keys() if found[name] != expected[name]]
    return [
        *(f"{name}: missing" for name in sorted(names - found.keys())),
        *(f"{name}: not tracked, or not meant to be here" for name in sorted(found.keys() - names)),
        *(f"{name}: its bytes are not those of the tree" for name in sorted(changed)),
    ]


def metadata_problems(metadata: bytes, project: Mapping[str, Any], tracked: Files) -> list[str]:
    """Compare METADATA with pyproject, and its description with the README."""
    found, unknown = parse_email(metadata)
    expected: dict[str, Any] = {
        "name": project["name"],
        "version": project["version"],
        "summary": project["description"],
        "requires_python": project["requires-python"],
        "license_expression": project["license"],
        "license_files": sorted(project["license-files"]),
        "keywords": sorted(project["keywords"]),
        "classifiers": sorted(project["classifiers"]),
        "provides_extra": sorted(project["optional-dependencies"]),
        "requires_dist": sorted(_requirements(project)),
        "description": tracked[project["readme"]].decode(),
    }
    told: dict[str, Any] = {k: sorted(v) if isinstance(v, list) else v for k, v in found.items()}
    told["requires_dist"] = sorted(str(Requirement(x)) for x in found.get("requires_dist", ()))
    return [f"METADATA: {name} is no field of it" for name in unknown] + [
        f"METADATA: {name} is not what pyproject says but {told.get(name)!r:.200}"
        for name, value in expected.items()
        if told.get(name) != value
    ]


def entry_point_problems(text: str, project: Mapping[str, Any]) -> list[str]:
    """Compare entry_points.txt with the scripts and entry points of pyproject."""
    parser = ConfigParser(delimiters="=")
    parser.read_string(text)
    found = {name: dict(parser[name]) for name in parser.sections()}
    expected = {"console_scripts": project["scripts"], **project["entry-points"]}
    return [] if found == expected else [f"entry_points.txt: not what pyproject says: {found}"]


def paths_inside(files: Files, places: Iterable[Path]) -> list[str]:
    """Return the files that name a folder of the machine which built them."""
    sought = [f"{place}/" for place in places if place != Path(place.anchor)]
    return [
        f"{name}: holds the path {place}"
        for name, content in files.items()
        for place in sought
        if place.encode() in content
    ]


def _packages(tracked: Files) -> dict[str, bytes]:
    """Return what lies in packages, by name in the wheel: each adapter is a package of its own at the top."""
    return {
        name.removeprefix("adapters/"): content
        for name, content in tracked.items()
        if name.startswith(("sane_plugins/", "adapters/"))
    }


def _requirements(project: Mapping[str, Any]) -> set[str]:
    """Return all requirements as METADATA spells them, extras of our own replaced by what they hold."""
    extras: Mapping[str, list[str]] = project["optional-dependencies"]

    def expanded(requirement: Requirement) -> set[str]:
        if requirement.name != project["name"]:
            return {str(requirement)}
        inner = (Requirement(x) for extra in requirement.extras for x in extras[extra])
        return {text for one in inner for text in expanded(one)}

    plain = {str(Requirement(text)) for text in project["dependencies"]}
    return plain | {
        str(Requirement(f"{one}; extra == '{extra}'"))
        for extra, texts in extras.items()
        for text in texts
        for one in expanded(Requirement(text))
    }
