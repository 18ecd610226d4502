"""The page on a folder answers at a glance, holds no other's markup, and says the same as its JSON."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import sane_plugins
from sane_plugins.cli.main import main
from sane_plugins.errors import visible
from sane_plugins.zoo import Zoo, write_zoo

HOSTILE = "<script>alert(1)<img src=x onerror='alert(2)'>\u202e\"&.pt"
VOID = {"meta", "br", "img"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; checks that tags close in order."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))
        assert not self.open

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


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def tuned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights that moved a fifth of their size, the large ones more than the small ones."""
    moved = {k: x**3 / x.square().mean() for k, x in state.items() if x.is_floating_point()}
    return {k: x + 0.2 * x.std() * moved[k] / moved[k].std() for k, x in state.items()}


@pytest.fixture(scope="module")
def shipped() -> Zoo:
    return Zoo.open(Path(sane_plugins.__file__).parent / "data" / "prompts")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shipped) -> Path:
    """Lay out strangers, a network and its copy, one tuned from another, a broken and an unreadable one."""
    folder = tmp_path_factory.mktemp("pile") / "runs"
    folder.mkdir()
    states = [shipped.state_dict(entry) for entry in shipped.entries[:6]]
    names = ("good.pt", "parent.pt", HOSTILE, "other.pt", "nan.pt", "last.pt")
    next(x for x in states[4].values() if x.ndim > 1)[0] = float("nan")
    for name, state in zip(names, states, strict=True):
        torch.save(state, folder / name)
    torch.save({f"module.{k}": x.half() for k, x in states[0].items()}, folder / "copy.pt")
    torch.save(tuned(states[1]), folder / "child.pt")
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    return folder


@pytest.fixture(scope="module")
def made(runs) -> tuple[dict, Path]:
    page = runs.parent / "report.html"
    done = run(runs, "-o", page, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout), page


def test_json_says_the_best_the_broken_the_duplicates_and_the_parent(made, runs):
    found, _ = made
    networks = found["networks"]
    assert found["broken"] == [f"{runs}/nan.pt"]
    assert found["unreadable"] == [f"{runs}/cut.safetensors"]
    assert [sorted(x) for x in found["duplicates"]] == [[f"{runs}/copy.pt", f"{runs}/good.pt"]]
    parents = {x["name"]: x["parent"] for family in found["families"] for x in family}
    assert parents[f"{runs}/child.pt"] == f"{runs}/parent.pt"
    assert parents[f"{runs}/parent.pt"] is None
    assert not {f"{runs}/other.pt", f"{runs}/last.pt", f"{runs}/{HOSTILE}"} & parents.keys()
    known = {
        name: x["predictions"]["test_accuracy"]["value"]
        for name, x in networks.items()
        if x["healthy"] and x["predictions"]["test_accuracy"]["in_distribution"]
    }
    best = found["best"]
    assert best["basis"] == "predicted" and best["value"] == max(known.values())
    assert known[best["name"]] == best["value"]
    assert {best["name"], best["next"]} != {f"{runs}/copy.pt", f"{runs}/good.pt"}
    assert networks[f"{runs}/nan.pt"]["verdict"] == "not finite"
    assert set(networks[f"{runs}/nan.pt"]["errors"]) == {"predict", "fingerprint"}
    assert set(networks[f"{runs}/cut.safetensors"]["errors"]) == {"read"}
    assert len(found["map"]["places"]) == len(networks) - 2


def test_page_needs_nothing_else_and_holds_no_markup_of_a_file_name(made):
    _, page = made
    text, reader = page.read_text(encoding="utf-8"), Reader(page)
    assert reader.tags.count("script") == 1 and "img" not in reader.tags
    names = {name for name, _ in reader.attributes}
    assert not {"src", "onerror", "onclick"} & names
    assert all(value.startswith("#") for name, value in reader.attributes if name == "href")
    assert not re.search(r"https?://|url\(|@import|<script>alert|\u202e", text)
    assert "&lt;script&gt;alert(1)" in text


def test_page_lets_only_its_own_script_run(made):
    from base64 import b64encode
    from hashlib import sha256

    text = made[1].read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in text and "default-src &#39;none&#39;" in text


def test_page_answers_at_a_glance(made):
    found, page = made
    text = Reader(page).text
    glance = text[text.index("At a glance") : text.index("All networks")]
    best = visible(Path(found["best"]["name"]).name)
    for told in (best, "1 broken", "nan.pt", "1 unreadable", "cut.safetensors", "parent.pt"):
        assert told in glance, told
    assert re.search(r"1 tuned from another\s*child.pt from parent.pt", glance)
    assert {"copy.pt", "good.pt"} <= set(re.findall(r"\w+\.pt", glance))


def test_every_network_has_a_row_and_every_link_a_place(made):
    found, page = made
    reader = Reader(page)
    ids = {value for name, value in reader.attributes if name == "id"}
    links = {value[1:] for name, value in reader.attributes if name == "href"}
    assert links <= ids
    assert {f"n{i}" for i in range(len(found["networks"]))} <= ids
    assert "prefers-color-scheme: dark" in page.read_text() and "@media print" in page.read_text()


def test_what_a_zoo_records_counts_for_more_than_predictions(tmp_path, shipped):
    some = shipped.entries[:3]
    write_zoo(tmp_path / "zoo", "zoo", ((x, shipped.state_dict(x)) for x in some))
    for options, choose in (((), max), (("--property", "gap", "--lower"), min)):
        done = run(tmp_path / "zoo", "-o", tmp_path / "page.html", "--json", "--force", *options)
        best = json.loads(done.stdout)["best"]
        entry = choose(some, key=lambda x: x.properties[best["property"]])
        assert best["name"] == f"{tmp_path}/zoo/{entry.key}" and best["basis"] == "measured"
    text = Reader(tmp_path / "page.html").text
    assert some[0].key in text and "recorded" in text


def test_what_cannot_be_is_told_and_nothing_is_replaced(made, runs, tmp_path):
    _, page = made
    before = page.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    for arguments, code, told in (
        ((runs,), 2, "neither -o nor --json"),
        ((runs, "-o", page), 2, "--force"),
        ((runs, "-o", runs / "good.pt", "--force"), 2, ".html"),
        ((runs, "--json", "--property", "beauty"), 2, "beauty"),
        ((tmp_path, "--json"), 1, "none of its 1 networks could be read"),
        ((tmp_path / "nothing", "--json"), 1, "nothing"),
    ):
        done = run(*arguments)
        assert done.exit_code == code and told in done.stderr, (arguments, done.stderr)
        assert done.stdout == "" and "Traceback" not in done.stderr
    assert page.read_bytes() == before
