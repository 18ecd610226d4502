"""What docstrings cite of the method is there: sections of its page by number, and packages by name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METHOD, DESIGN = "docs/explanation/sane.md", "docs/explanation/design.md"
SOURCES = [
    path
    for folder in ("sane_plugins", "adapters", "benchmarks", "tools", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
]
HEADING = re.compile(r"^#{2,3} (\d+(?:\.\d+)?)\.? \S", re.MULTILINE)
NUMBER = r"\d+(?:\.\d+)?"
LIST = rf"sections? ({NUMBER}(?:(?:, | and ){NUMBER})*)"
CITATION = re.compile(rf"{re.escape(METHOD)}, {LIST}")


@pytest.fixture(scope="module")
def sections() -> list[str]:
    return HEADING.findall((ROOT / METHOD).read_text(encoding="utf-8"))


def in_one_line(path: Path) -> str:
    """Return a file's text: a citation may be broken over lines of a docstring or a comment."""
    return re.sub(r"\s+(#\s+)?", " ", path.read_text(encoding="utf-8"))


def numbers(lists: list[str]) -> set[str]:
    return {number for text in lists for number in re.findall(NUMBER, text)}


def test_sections_are_numbered_in_order_and_once(sections: list[str]) -> None:
    found = [tuple(map(int, number.split("."))) for number in sections]
    assert found == sorted(set(found))
    assert [number[0] for number in found if len(number) == 1] == [*range(1, found[-1][0] + 1)]


def test_every_cited_section_is_there(sections: list[str]) -> None:
    cited = {path: numbers(CITATION.findall(in_one_line(path))) for path in SOURCES}
    assert sum(map(len, cited.values())) > 20
    assert not {path: found - set(sections) for path, found in cited.items() if found - {*sections}}


def test_every_citation_names_a_section() -> None:
    texts = {path: in_one_line(path) for path in SOURCES}
    assert not [p for p, text in texts.items() if text.count(METHOD) != len(CITATION.findall(text))]


def test_no_docstring_cites_a_specification() -> None:
    old = re.compile(r"\bspec(ification)?('s)? sections?\b")
    assert not [path for path in SOURCES if old.search(in_one_line(path))]


def test_the_page_refers_to_sections_that_it_has(sections: list[str]) -> None:
    own = re.sub(rf"\d{{4}}, section {NUMBER}", "", in_one_line(ROOT / METHOD))  # those of papers
    found = numbers(re.findall(rf"\b{LIST}", own))
    assert len(found) > 10
    assert not found - set(sections)


@pytest.mark.parametrize("page", [METHOD, DESIGN])
def test_what_a_page_names_of_the_code_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    names = set(re.findall(r"`(sane_plugins(?:[./]\w+)+?)(?:\.py)?`", text))
    assert names
    places = [ROOT / name.replace(".", "/") for name in names]
    assert not [p for p in places if not (p.is_dir() or p.with_suffix(".py").is_file())]
    scripts = re.findall(r"`python ([\w/]+\.py)", text)
    assert not [script for script in scripts if not (ROOT / script).is_file()]
