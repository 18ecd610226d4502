"""Rules of the house that no other tool checks; which room may import which is a contract in pyproject."""

import ast
import re
from collections import Counter
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
DESIGN = (ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")


def _imported(path: Path) -> set[str]:
    nodes = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom))
    return {node.module for node in nodes if node.module}


def test_other_rooms_are_entered_by_their_faces() -> None:
    """Modules are free to move behind the face of their package."""
    wrong = []
    for path in [*(ROOT / "sane_plugins").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]:
        own = path.relative_to(ROOT).parts[1].removesuffix(".py")
        for module in _imported(path):
            first, *rest = module.split(".")
            if first == "sane_plugins" and len(rest) > 1 and rest[0] != own:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_every_name_of_a_face_is_there() -> None:
    for stub in (ROOT / "sane_plugins").glob("*/__init__.pyi"):
        package = import_module(f"sane_plugins.{stub.parent.name}")
        assert set(package.__all__) == set(dir(package))
        assert all(hasattr(package, name) for name in package.__all__)


def test_a_module_exports_only_what_it_defines() -> None:
    """Names are imported from where they are defined; faces alone pass on names of others."""
    wrong = []
    for path in (ROOT / "sane_plugins").rglob("*.py"):
        body = ast.parse(path.read_text()).body if path.name != "__init__.py" else []
        imports = [node for node in body if isinstance(node, ast.ImportFrom)]
        imported = {alias.asname or alias.name for node in imports for alias in node.names}
        exported = {
            constant.value
            for node in body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            for constant in ast.walk(node.value)
            if isinstance(constant, ast.Constant)
        }
        if imported & exported:
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong


def test_no_class_name_stands_twice() -> None:
    files = [*(ROOT / "sane_plugins").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
    classes = Counter(
        node.name
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in classes.items() if count > 1]


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


def test_the_order_of_a_release_names_every_script_and_no_other() -> None:
    folder = ROOT / "tools" / "release"
    named = set(re.findall(r"([\w/]+\.py)\b", (folder / "README.md").read_text()))
    assert not [name for name in named if not any((x / name).exists() for x in (ROOT, folder))]
    assert {path.name for path in folder.glob("*.py")} <= {Path(name).name for name in named}
