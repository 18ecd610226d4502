"""Rules of the house that no other tool checks; which room may import which is a contract in pyproject."""

import ast
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
