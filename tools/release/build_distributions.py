"""Build the sdist and the wheel, check what they hold, and run the main job from the wheel where nothing else is.

    python tools/release/build_distributions.py [--out dist]

Needs the packages build, hatchling and twine, and git to know which files are ours. The wheel is built from the sdist, as
pip would do, and again from the tree: both must be equal byte for byte. It is then installed into an empty
environment, in a temporary folder away from the sources, and does there what the README's Start shows. Only when all
went well are both files written to `--out`. Exits with 1 and the complaints otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomllib  # type: ignore[import-not-found]  # mypy reads as Python 3.10, the constraints are for 3.11
from check_distributions import (
    Files,
    paths_inside,
    read_sdist,
    read_wheel,
    sdist_problems,
    wheel_problems,
)

ROOT = Path(__file__).resolve().parents[2]
MAIN_JOB = "sane-init --task digits -o digits.safetensors"
# What an adapter answers where its library is missing: one sentence that names the extra.
DECLINED = {
    "torchvision:resnet18": "sane-plugins[torchvision]",
    "timm:resnet18": "sane-plugins[timm]",
    "empty.onnx": "sane-plugins[onnx]",
}
SMALLEST_ONNX = b"\x08\x07\x12\x04test"  # a version and a producer


def main() -> None:
    """Build, check, install, run; each step tells its seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        with step("build"):
            sdist, wheel = build(work)
        with step("check"):
            check(sdist, wheel, work)
        with step("install into an empty environment"):
            environment = Environment(work / "environment", work / "away")
            environment.install(wheel)
        with step("run the main job there"):
            run_main_job(environment)
        with step("ask the plugins there"):
            ask_plugins(environment, read_wheel(wheel))
        out.mkdir(parents=True, exist_ok=True)
        for path in (sdist, wheel):
            print(f"{shutil.copy(path, out)}: {path.stat().st_size / 1e6:.2f} MB", flush=True)
        with step("remove the environment"):
            shutil.rmtree(work / "environment")


def build(work: Path) -> tuple[Path, Path]:
    """Build the sdist, the wheel from it, and one from the tree, dated by the last commit; refuse unequal ones."""
    commit_time = _git("log", "-1", "--format=%ct").strip()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": commit_time}
    command = [sys.executable, "-m", "build", str(ROOT), "--outdir"]
    _run([*command, str(work / "dist")], work, environment)
    # pyproject's requirements for building were just seen to suffice: the second time they need not be installed again.
    _run([*command, str(work / "tree"), "--wheel", "--no-isolation"], work, environment)
    (sdist,), (wheel,) = ((work / "dist").glob(form) for form in ("*.tar.gz", "*.whl"))
    if wheel.read_bytes() != (work / "tree" / wheel.name).read_bytes():
        refuse([f"{wheel.name}: the one built from the sdist is not the one built from the tree"])
    return sdist, wheel


def check(sdist: Path, wheel: Path, work: Path) -> None:
    """Compare the contents of both with the tree, and render the README as PyPI would."""
    tracked = tracked_files()
    project: Mapping[str, Any] = tomllib.loads(tracked["pyproject.toml"].decode())["project"]
    in_sdist, in_wheel = read_sdist(sdist), read_wheel(wheel)
    places = [ROOT, Path.home(), work]
    refuse(
        [
            *(f"sdist: {x}" for x in sdist_problems(in_sdist, tracked)),
            *(f"wheel: {x}" for x in wheel_problems(in_wheel, tracked, project)),
            *(f"sdist: {x}" for x in paths_inside(in_sdist, places)),
            *(f"wheel: {x}" for x in paths_inside(in_wheel, places)),
        ]
    )
    _run([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)], work)
    print(f"{len(in_sdist)} files in the sdist, {len(in_wheel)} in the wheel")


def tracked_files() -> Files:
    """Return the files that git knows of, as they lie in the tree."""
    names = _git("ls-files", "-z").split("\0")
    return {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}


class Environment:
    """A virtual environment that holds the wheel, and a folder away from the sources where its commands run."""

    def __init__(self, place: Path, away: Path) -> None:
        self.scripts, self.away = place / "bin", away
        away.mkdir()
        venv.create(place, symlinks=True)  # not even pip is in it
        # Whatever points at the sources or at another environment stays behind.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        self.variables = kept

    def install(self, wheel: Path) -> None:
        """Install the wheel with the tested versions, and nothing that it does not ask for."""
        # Compiling all of torch takes longer than installing it; Python compiles what is imported.
        options = ["--quiet", "--no-compile", "--constraint", str(ROOT / "constraints.txt")]
        pip = [sys.executable, "-m", "pip", "--python", str(self.scripts / "python")]
        _run([*pip, "install", *options, str(wheel)], self.away)
        _run([*pip, "check"], self.away)

    def run(self, command: str, *arguments: str) -> str:
        """Run a command of the environment and return what it printed; refuse where it fails."""
        return _run([str(self.scripts / command), *arguments], self.away, self.variables)

    def declined(self, command: str, *arguments: str) -> str:
        """Run a command that must fail by one sentence, and return the sentence."""
        line = [str(self.scripts / command), *arguments]
        done = subprocess.run(
            line, cwd=self.away, env=self.variables, capture_output=True, text=True
        )
        if done.returncode != 1 or done.stdout or done.stderr.count("\n") != 1:
            refuse([f"{' '.join(line)}: exit code {done.returncode}, {done.stdout}{done.stderr}"])
        return done.stderr


def run_main_job(environment: Environment) -> None:
    """Run the README's command and the lines of Python that it shows for the written file."""
    readme = (ROOT / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?load_file\(\"digits\.safetensors\"\).*?)```", readme, re.S)
    if MAIN_JOB not in readme or snippet is None:
        refuse([f"README.md: shows no longer `{MAIN_JOB}`, and how its file is loaded in Python"])
        return
    command, *arguments = MAIN_JOB.split()
    environment.run(command, *arguments)
    environment.run("python", "-c", snippet[1])
    (imported,) = environment.run(
        "python", "-c", "print(__import__('sane_plugins').__file__)"
    ).split()
    if not imported.startswith(str(environment.scripts.parent)):
        refuse([f"sane_plugins: imported from {imported}, not from the wheel"])


def ask_plugins(environment: Environment, wheel: Files) -> None:
    """See that all plugins load without any extra, and that each adapter says which one it needs."""
    listed = json.loads(environment.run("sane-plugins", "list", "--json"))
    names = {plugin["name"] for plugin in listed["plugins"]}
    if listed["problems"] or names != {
        "builtin",
        "efficientnet_lite",
        "gguf",
        "mlflow",
        "onnx",
        "ray",
        "timm",
        "torchvision",
    }:
        refuse([f"sane-plugins list: {sorted(names)}, problems: {listed['problems']}"])
    (environment.away / "empty.onnx").write_bytes(SMALLEST_ONNX)
    for source, extra in DECLINED.items():
        sentence = environment.declined("sane-plugins", "inspect", source)
        if f"pip install '{extra}'" not in sentence:
            refuse([f"sane-plugins inspect {source}: does not name {extra}: {sentence}"])
    if "sane_plugins/__main__.py" in wheel:
        environment.run("python", "-m", "sane_plugins", "--help")


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print how long a step took."""
    start = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


def refuse(problems: list[str]) -> None:
    """End with the problems, if there are any."""
    if problems:
        sys.exit("\n".join(["Refused:", *problems]))


def _git(*arguments: str) -> str:
    return _run(["git", "-C", str(ROOT), *arguments], ROOT)


def _run(command: list[str], folder: Path, variables: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it printed; what it says is shown only where it fails."""
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        refuse([f"{' '.join(command)}: exit code {done.returncode}", done.stdout + done.stderr])
    return done.stdout


if __name__ == "__main__":
    main()
