"""The architecture's rules that a machine can check: imports point down, extras stay optional."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOOR = ["errors", "progress"]
LAYERS = [
    *FLOOR,
    "weights",
    "latent",
    "zoo",
    "tasks",
    "hooks",
    "selection",
    "answers",
    "host",
    "foreign",
    "builtin",
    "cli",
]
ADAPTER_MAY_USE = {*FLOOR, "weights", "hooks"}


def _imports(path: Path) -> set[str]:
    """Return the first part below `sane_plugins` of every import that is not for typing only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = (name.split(".") for name in names)
    return {p[1] for p in parts if p[0] == "sane_plugins" and len(p) > 1 and p[1] in LAYERS}


def test_imports_point_down() -> None:
    package = ROOT / "sane_plugins"
    wrong = []
    for path in package.rglob("*.py"):
        layer = path.relative_to(package).parts[0].removesuffix(".py")
        if layer == "__init__":
            continue
        above = set(LAYERS[LAYERS.index(layer) + 1 :])
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in _imports(path) & above]
    assert not wrong


def test_adapters_know_only_hooks_and_weights() -> None:
    for path in (ROOT / "adapters").rglob("*.py"):
        assert _imports(path) <= ADAPTER_MAY_USE, path


def test_adapters_folder_is_no_package() -> None:
    assert not (ROOT / "adapters" / "__init__.py").exists()


def test_library_does_not_print() -> None:
    for path in (ROOT / "sane_plugins").rglob("*.py"):
        if "cli" not in path.parts:
            calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
            assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), (
                path
            )
