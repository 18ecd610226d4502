"""Rules of the house that no other tool checks; which room may import which is a contract in pyproject."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DESIGN = (ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")


def test_adapters_folder_is_no_package() -> None:
    assert not (ROOT / "adapters" / "__init__.py").exists()


def test_library_does_not_print() -> None:
    for path in (ROOT / "sane_plugins").rglob("*.py"):
        if "cli" not in path.parts:
            calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
            assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), (
                path
            )


def test_the_floors_of_the_page_are_those_of_the_contract() -> None:
    contract = re.search(
        r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    layers = [set(line.split(" | ")) for line in re.findall(r'"(.+)"', contract[1])]
    told: dict[int, set[str]] = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| (`.+?`) \|", DESIGN, re.MULTILINE):
        told.setdefault(int(floor), set()).update(re.findall(r"`(\w+)`", rooms))
    assert told == dict(enumerate(reversed(layers), 1))


def test_a_run_of_sane_init_is_followed_in_at_most_eight_files() -> None:
    way = DESIGN.split("## The way of `sane-init`")[1].split("\n## ")[0]
    assert 1 < len(re.findall(r"^\| `\S+\.py` \|", way, re.MULTILINE)) <= 8
