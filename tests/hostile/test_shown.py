"""What is shown, on a terminal, in HTML and in pictures: names from files neither act nor hide."""

import ast
import json
import shutil
import sys
import types
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from hostile.bounded import run
from torch import nn

import sane_plugins
from sane_plugins import zoo
from sane_plugins.architectures import small_cnn
from sane_plugins.cli import console
from sane_plugins.cli.initialize import main as sane_init
from sane_plugins.cli.main import main
from sane_plugins.display import html_table
from sane_plugins.errors import SourceError, ZooError, visible
from sane_plugins.inspection import survey_network
from sane_plugins.weights import from_module

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "link": "\x1b]8;;https://example.org\x1b\\here",
    "clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "C1": "\x9b31m\x9d0;title\x9c",
    "line": "one\r\ntwo\x0b\x0c\x85\u2028\u2029three",
    "backspace": "safe\x08\x08\x08\x08evil\x7f",
    "direction": "\u202egnp.\u202cexe\u2066\u2069\u200e\u200f\u061c",
    "unseen": "a\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u3164\ufe0fb",
    "tags": "a\U000e0041\U000e0042\U000e007f\U000e0101",
    "private": "\ue000\U000f0000\U0010ffff",
    "surrogate": "\udcff\ud800",
    "marks": "a" + "\u0301" * 40,
    "blanks": "\u00a0\u3000\u2003\u2800",
    "long": "x" * 1_000_000,
}
READABLE = [
    "权重.卷积",
    "Übergröße",
    "شبكة",
    "שכבה",
    "नमस्ते",
    "ネットワーク",
    "ชั้น",
    "Cà phê",
    "🦊.🐻",
    "x²",
]
_UNSEEN = set("\u034f\u115f\u1160\u3164\ufe0f\u2800\U000e0101")


def _is_shown_safely(text: str) -> bool:
    return len(text) < 20_000 and not any(
        unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} or c in _UNSEEN
        for c in text.replace("\n", "")
    )


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE)
def name(request) -> str:
    return request.param


def test_what_acts_or_hides_is_escaped(name: str) -> None:
    shown = visible(name)
    assert _is_shown_safely(shown)
    assert "\n" not in shown
    assert len(shown) < 10_100
    assert visible(shown) == shown or len(name) > 1000


def test_every_character_that_is_no_letter_mark_number_or_sign_is_escaped() -> None:
    for category in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        found = [c for c in map(chr, range(0xF0000)) if unicodedata.category(c) == category]
        assert found
        for i in range(0, len(found), 500):
            assert visible("".join(found[i : i + 500])).isascii()


@pytest.mark.parametrize("text", READABLE)
def test_names_of_all_scripts_stay_as_they_are(text: str) -> None:
    assert visible(text) == text


def test_an_overlong_name_shows_both_ends_and_how_much_is_left_out() -> None:
    shown = visible("begin" + "x" * 1_000_000 + "end")
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert "(999,008 more)" in shown


def test_errors_are_one_visible_line_with_all_four_facts(name: str) -> None:
    text = str(SourceError(f"place {name}", f"found {name}", f"needed {name}", f"way {name} out"))
    assert _is_shown_safely(text)
    assert "\n" not in text
    assert all(word in text for word in ("place ", ": found ", ", but needed ", "; way ", "out."))


def _invoke(command: click.Command, *arguments: object):
    return CliRunner().invoke(command, [*map(str, arguments)])


def _require_safe(done) -> None:
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert _is_shown_safely(done.stdout), ascii(done.stdout)
    assert _is_shown_safely(done.stderr), ascii(done.stderr)


def _file(folder: Path, name: str) -> Path:
    """Return a checkpoint of a hostile name, as far as a file system allows it, with hostile tensors."""
    path = folder / f"{name.replace('/', '')[:100]}.pt".encode(errors="replace").decode()
    tensors = {f"{name}.weight": torch.randn(4, 3), f"{name}.bias": torch.randn(4)}
    torch.save(tensors, path)
    return path


def test_a_network_is_shown_safely_and_its_json_is_exact(name: str, tmp_path: Path) -> None:
    name = name[:900]  # longer ones are not read
    path = _file(tmp_path, name)
    done = _invoke(main, "inspect", path)
    assert done.exit_code == 0
    _require_safe(done)
    done = _invoke(main, "inspect", path, "--json")
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["layers"][0]["tensors"][0]["key"] in f"{name}.weight {name}.bias"


def test_a_plugins_texts_are_shown_safely(name: str, capsys) -> None:
    console.note(name)
    console.print_line(name)
    console.print_table(name, (name, "[bold]"), [(name, "[/]"), (Path("[red]"), 3)])
    out, err = capsys.readouterr()
    assert _is_shown_safely(out)
    assert _is_shown_safely(err)
    assert len(err.splitlines()) == 1
    assert "[bold]" in out
    assert "[/]" in out
    assert "[red]" in out


@pytest.mark.parametrize("template", ["--{}", "{}", "inspect --{}", "inspect a {}", "zoo {}"])
def test_wrong_usage_is_told_safely(name: str, template: str) -> None:
    arguments = template.format("Q").split()
    done = _invoke(main, *(argument.replace("Q", name) for argument in arguments))
    assert done.exit_code in (1, 2)
    _require_safe(done)


@pytest.mark.parametrize(
    "options", [["--search"], ["verify", "--Q"], ["verify", "a"], ["--samples"]]
)
def test_wrong_usage_of_sane_init_is_told_safely(name: str, options: list[str]) -> None:
    done = _invoke(sane_init, *(option.replace("Q", name) for option in options), name, "-o", "x")
    assert done.exit_code == 2
    _require_safe(done)


def test_help_that_names_plugins_is_shown_safely(name: str, monkeypatch) -> None:
    command = click.Command(name[:50] or "x", help=name, callback=lambda: None)
    monkeypatch.setattr(
        "sane_plugins.cli.main.open_host",
        lambda: types.SimpleNamespace(commands=lambda **_: [command]),
    )
    done = _invoke(main, "--help")
    assert done.exit_code == 0
    _require_safe(done)


def test_progress_bars_take_any_name(name: str, monkeypatch, capsys) -> None:
    """Brackets were markup: `[/]` in a file's name ended a command that ran on a terminal."""
    from sane_plugins.host import Host
    from sane_plugins.progress import Progress

    monkeypatch.setenv("FORCE_COLOR", "1")
    host = Host.installed()
    with console.progress_bars(host):
        host.report(Progress(job=name, done=1, total=3, note=f"[/] [link=https://x.y]{name}"))
        host.report(Progress(job=name, done=2, total=3, note="[bold"))
    err = capsys.readouterr().err
    assert err
    # Rich itself moves the cursor; no more than that may be there.
    for hostile in (
        "\x1b[31m",
        "\x1b]",
        "\x9b",
        "\x9d",
        "\x07",
        "\u202e",
        "\u200b",
        "\udcff",
        "\x85",
    ):
        assert hostile not in err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_is_valid_where_numbers_are_not_finite(value: float, tmp_path: Path) -> None:
    def fail(literal: str):
        pytest.fail(f"{literal} is no JSON")

    torch.save({"a.weight": torch.full((3, 2), value)}, tmp_path / "net.pt")
    done = _invoke(main, "inspect", tmp_path / "net.pt", "--json")
    assert json.loads(done.stdout, parse_constant=fail)["not_finite"] == 6


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_of_the_terminal_will_do(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "权重\udcff🦊.pt"
    torch.save({"卷积.weight": torch.zeros(2, 3)}, path)
    done = run("inspect", path, PYTHONIOENCODING=encoding)
    assert done.code == 0, done.stderr
    assert ("卷积" if encoding == "utf-8" else "\\u5377\\u79ef") in done.stdout
    assert "\\udcff" in done.stdout


def test_html_of_notebooks_is_safe(name: str) -> None:
    html = html_table(name, (name, "<b>"), [(name, "<script>")])
    assert _is_shown_safely(html)
    assert "<b>" not in html
    assert "<script>" not in html


@pytest.mark.skipif(sys.platform == "win32", reason="file names are Unicode there")
def test_file_names_that_are_no_unicode_end_no_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "n\udcff\x1b]0;x\x07"
    Path(f"d{odd}").mkdir()
    torch.manual_seed(0)
    torch.save(small_cnn().state_dict(), Path(f"d{odd}") / f"{odd}.pt")
    shutil.copy(Path(f"d{odd}") / f"{odd}.pt", f"{odd}.pt")
    torch.save({"\udcff.weight": torch.ones(2, 3)}, Path(f"d{odd}") / "keys.pt")
    for arguments in (
        ["embed", f"{odd}.pt", "-o", f"{odd}.safetensors"],
        ["predict", f"{odd}.pt"],
        ["zoo", "add", f"d{odd}", "-o", "zoo", "--factory", "small_cnn"],
        ["zoo", "show", "zoo"],
        ["zoo", "evaluate", "zoo", "--task", "digits", "--images", "20", "--size", "28"],
    ):
        done = _invoke(main, *arguments)
        assert done.exit_code == 0, done.output
        _require_safe(done)
    arguments = ["-o", f"{odd}.made.pt", "--report", f"{odd}.html", "--prompts", f"{odd}.pt"]
    done = _invoke(sane_init, *arguments, "--samples", 1, "--keep", 1, "--budget", 3)
    assert done.exit_code == 0, done.output
    _require_safe(done)
    assert _is_shown_safely(_page(Path(f"{odd}.html")))


def _page(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    assert "�" not in text
    return "\n".join(line[:10_000] for line in text.splitlines())[:19_000]


def _network(*names: str) -> nn.Module:
    network = nn.Sequential(nn.Flatten())
    for name in names:
        network.add_module(f"{name.replace('.', '')} $\\bad_{{$", nn.Linear(8, 8))
    network.add_module("out", nn.Linear(8, 10))
    return network


def test_the_report_is_safe(name: str) -> None:
    from sane_plugins.initialize import html_report
    from sane_plugins.initialize.candidates import CandidateScore, Kind

    graph = from_module(_network(name))
    curve = tuple((i / 100, 0.5) for i in range(1, 400))  # longer than any name may be
    row = CandidateScore(name=name, kind=Kind.SANE, seed=0, before=0.1, curve=curve, chosen=True)
    prompt = {"source": name, "hash": name, "licence": name}
    result = types.SimpleNamespace(
        rows=(row,),
        graph=graph,
        origins={},
        provenance={"task": {"name": name}, "prompts": [prompt], name: name},
    )
    page = html_report(result, name, [name, name])  # type: ignore[arg-type]
    shown, _, provenance = page.partition("<pre>")
    assert "3.99" in shown
    assert "…" not in shown.partition("<polyline")[2].partition("</svg>")[0]
    assert provenance.isascii()
    assert _is_shown_safely(shown[:19_000])
    assert _is_shown_safely(shown[-19_000:])
    assert len(shown) < 200_000
    assert json.loads(unescape(provenance.partition("</pre>")[0]))[name] == name


def test_a_picture_is_safe(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.text import Text

    from sane_plugins.inspection.plot import draw, save_plot
    from sane_plugins.inspection.token_map import token_map

    graph = from_module(_network(*HOSTILE.values()))
    survey = survey_network(graph)
    names = [*HOSTILE.values(), "end"]
    layers = tuple(
        replace(layer, label=f"$\\x_{{${name}")
        for layer, name in zip(survey.layers, names, strict=True)
    )
    source = f"{''.join(HOSTILE.values()).replace('/', '')} $\\frac{{$"
    survey = replace(survey, source=source, layers=layers)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing|Matplotlib currently")
        figure = draw(survey, token_map(graph, {x.key: x.scale for x in survey.tensors}, 128))
        figure.canvas.draw()
    for text in figure.findobj(Text):
        assert _is_shown_safely(text.get_text()), ascii(text.get_text())
        assert len(text.get_text()) < 120
        assert "$" not in text.get_text() or not text.get_parse_math()
    assert save_plot(graph, survey, tmp_path / "net.svg").stat().st_size


# That nothing else prints.

_PRINTS = {"print", "echo", "secho", "echo_via_pager", "progressbar", "prompt", "confirm", "input"}
_GATES = {
    "rich": {"cli/console.py"},
    "jinja2": {"display.py"},
    # cli/options/trust.py draws nothing.
    "matplotlib": {
        *(
            "cli/options/trust.py",
            "comparison/presentation/comparison_plot.py",
            "inspection/plot.py",
        ),
        "pretraining/training_log.py",
    },
    # What is logged is shown too, where a program sets up nothing else.
    "logging": {
        "doctor/installation.py",  # it asks for less than is logged otherwise
        # Programs that have a log of their own.
        *("sane_kedro/__init__.py", "sane_mlflow/evaluator.py", "sane_mlflow/registered.py"),
        *("architectures/model_library.py", "architectures/torchvision_import.py"),
        "zoo/store.py",
    },
}
# A worker answers through its standard output, and sends what others print to standard error.
_STREAMS = {
    *("cli/console.py", "cli/results.py", "engines/serve.py", "engines/worker_process.py"),
    # These read what a process that they started has said.
    *("doctor/load_alone.py", "testing/fresh_process.py", "testing/light_import.py"),
}


def _modules() -> Iterator[tuple[str, ast.Module]]:
    package = Path(sane_plugins.__file__).parent
    for folder in (package, ROOT / "adapters"):
        for path in sorted(folder.rglob("*.py")):
            yield path.relative_to(folder).as_posix(), ast.parse(path.read_text())


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_only_the_console_prints() -> None:
    for module, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) in _PRINTS:
                assert module == "cli/console.py", f"{module}:{node.lineno} prints"
            if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"):
                redirects = (
                    module == "sane_torchvision/published.py"
                )  # what torch prints, to stderr
                assert module in _STREAMS or redirects, f"{module}:{node.lineno} takes a stream"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for package in {x.partition(".")[0] for x in names} & _GATES.keys():
                assert module in _GATES[package], f"{module}:{node.lineno} imports {package}"


def test_html_comes_from_one_table_and_one_page() -> None:
    for module, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("_repr_html"):
                (answer,) = [x for x in ast.walk(node) if isinstance(x, ast.Return)]
                assert isinstance(answer.value, ast.Call), module
                assert _name(answer.value.func) == "html_table", module


@pytest.mark.parametrize("field", ["network", "checkpoint"])
def test_a_zoo_that_names_a_lone_surrogate_is_answered(field: str, tmp_path: Path) -> None:
    names = {"network": "a", "checkpoint": "0", field: "QQ"}
    entry = zoo.Entry(factory={}, properties={}, **names)
    zoo.write_zoo(tmp_path / "zoo", "small", [(entry, {"weight": torch.ones(4, 4)})])
    index = tmp_path / "zoo" / "index.jsonl"
    index.write_text(index.read_text().replace("QQ", "a\\ud800"))
    with pytest.raises(ZooError):
        zoo.Zoo.open(tmp_path / "zoo")
