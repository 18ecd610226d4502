"""The page of an initialisation holds all that it shows, and shows all that was done."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sane_plugins.cli.initialize import main

VOID = {"meta", "br"}


class _Reader(HTMLParser):
    """Collects tags, attributes and text; checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a<b>")
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.integers(0, 40, (120, 28, 28)) + 60 * y[:, None, None]).astype(np.uint8)
    np.savez(folder / "task.npz", x_train=x, y_train=y)
    arguments = [
        "--task",
        folder / "task.npz",
        "-o",
        folder / "out.safetensors",
        "--samples",
        2,
        "--keep",
        2,
        "--report",
        folder / "out.html",
    ]
    done = CliRunner().invoke(main, [str(x) for x in arguments])
    assert done.exit_code == 0, done.output
    return folder / "out.html"


def test_page_is_whole_and_needs_nothing_else(written: Path) -> None:
    reader = _Reader()
    reader.feed(written.read_text(encoding="utf-8"))
    assert not reader.open
    assert not {"script", "link", "img", "iframe", "b>"} & set(reader.tags)
    assert not {"href", "src"} & {name for name, _ in reader.attributes}
    assert "url(" not in written.read_text(encoding="utf-8")


def test_page_shows_candidates_curves_layers_prompts_and_provenance(written: Path) -> None:
    reader = _Reader()
    reader.feed(written.read_text(encoding="utf-8"))
    assert reader.tags.count("svg") == 2
    assert {"polyline", "polygon", "rect"} <= set(reader.tags)
    for text in (
        "SANE candidate 1",
        "default 1, classifier fitted",
        "mean of prompts",
        "prompts:mnist",
        "held-out training images",
        '"seed": 0',
        "chosen",
    ):
        assert text in reader.text


def test_page_has_a_dark_style_and_its_pictures_have_titles_and_labelled_axes(
    written: Path,
) -> None:
    text = written.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert text.count('role="img" aria-label=') == text.count("<svg ")
    for told in ("epochs of training</text>", "accuracy, held out</text>", "trained</title>"):
        assert told in text


def test_an_existing_page_is_kept(written: Path) -> None:
    done = CliRunner().invoke(
        main, ["-o", str(written.with_name("b.safetensors")), "--report", str(written)]
    )
    assert done.exit_code == 2
