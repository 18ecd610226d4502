"""Rules of the house that no other tool checks; which room may import which is a contract in pyproject."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_adapters_folder_is_no_package() -> None:
    assert not (ROOT / "adapters" / "__init__.py").exists()


def test_library_does_not_print() -> None:
    for path in (ROOT / "sane_plugins").rglob("*.py"):
        if "cli" not in path.parts:
            calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
            assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), (
                path
            )


def test_the_order_of_a_release_names_every_script_and_no_other() -> None:
    folder = ROOT / "tools" / "release"
    named = set(re.findall(r"([\w/]+\.py)\b", (folder / "README.md").read_text()))
    assert not [name for name in named if not any((x / name).exists() for x in (ROOT, folder))]
    assert {path.name for path in folder.glob("*.py")} <= {Path(name).name for name in named}
