"""The page of formats says what is true: a file of each of its rows is made, and read as the row says."""

import re
from pathlib import Path

import pytest
import torch
from foreignfiles import FOREIGN, make_foreign
from formfiles import FORMS, can_make

from sane_plugins import Host
from sane_plugins.errors import SourceError
from sane_plugins.features import embed

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"
IN_FULL, COUNTED, REFUSED = "in full", "counted", "refused"


def rows() -> dict[str, str]:
    """Return the first cell of every row of the page's tables, and the second."""
    cells = re.findall(r"^\| (.+?) \| (.+?) \|", PAGE.read_text(), re.MULTILINE)
    return {name: read for name, read in cells if name != "form" and set(name) != {"-"}}


ROWS = rows()


def test_every_form_is_on_the_page_and_every_row_is_tested() -> None:
    assert sorted(ROWS) == sorted([*FORMS, *FOREIGN])


@pytest.mark.parametrize("name", [name for name in ROWS if name in FORMS])
def test_a_row_says_what_is_read(name: str, tmp_path, monkeypatch) -> None:
    if not can_make(name):
        pytest.skip("the library that makes or reads it is not installed")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    made, host = FORMS[name](tmp_path), Host.installed()
    if ROWS[name].startswith(REFUSED):
        with pytest.raises(SourceError) as caught:
            host.open(made.source)
        assert made.refused in str(caught.value)
        return
    graph = host.open(made.source)
    assert sum(graph.missed.values()) >= made.missed
    assert all(any(part in note for note in graph.notes) for part in made.notes), graph.notes
    if made.values is None:
        assert ROWS[name].startswith(COUNTED) or graph.coverage == 1
        assert graph.size + sum(graph.missed.values()) == made.count
    else:
        assert ROWS[name].startswith(IN_FULL)
        assert graph.coverage == 1
        read = {**graph.state_dict(), **{k: graph.tensors[v] for k, v in graph.ties.items()}}
        floating = {key: x for key, x in made.values.items() if x.is_floating_point()}
        owned = {param.key for param in graph.params} | {*graph.ties}
        assert sorted(owned) == sorted(floating)
        for key, right in floating.items():
            assert torch.allclose(read[key].float(), right.float(), rtol=1e-5, atol=1e-6), key
    assert dict(made.ties).items() <= dict(graph.ties).items()
    assert embed(graph).tokens > 0


@pytest.mark.parametrize("name", [name for name in ROWS if name in FOREIGN])
def test_a_row_of_foreign_forms_says_that_it_is_refused(name: str, tmp_path) -> None:
    assert ROWS[name].startswith(REFUSED)
    with pytest.raises(SourceError) as caught:
        Host.installed().open(make_foreign(name)(tmp_path))
    assert FOREIGN[name][0] in str(caught.value)
