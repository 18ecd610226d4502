"""The doctor: what is well is said to be, planted faults are found, and a plugin is disabled for good."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from sane_plugins import Host
from sane_plugins.cli.main import main
from sane_plugins.doctor import examine, list_extras, run_self_test
from sane_plugins.doctor.plugin_report import PluginReplies, report_plugins
from sane_plugins.plugins import disabled_file, set_disabled
from sane_plugins.runtime import threads

PATIENT = 3600  # seconds: no trial is left out on a busy machine


def _run(*arguments: str) -> tuple[int, dict]:
    done = CliRunner().invoke(main, [*arguments, "--json"])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}


def test_a_sound_installation_is_well() -> None:
    code, told = _run("doctor")
    assert (code, told["well"], told["complaints"]) == (0, True, [])
    assert {"python", "torch", "pluggy"} <= told["versions"].keys()
    assert "cpu" in told["devices"]
    plugins = {x["name"]: x for x in told["plugins"]}
    assert plugins["builtin"]["seconds"] >= 0
    assert "kde" in plugins["builtin"]["offers"]["samplers"]
    assert all(x["error"] is None and not x["is_skipped"] for x in told["self_test"])
    assert {x["what"] for x in told["self_test"]} >= {"encode the first", "predict its properties"}


RIGHT = """
@hookimpl
def sane_open(source): return None
@hookimpl
def sane_samplers():
    import torch
    return {"near": lambda prompts, count, rng:
        prompts[:1] + torch.randn((count, *prompts.shape[1:]), generator=rng)}
"""
FAULTS = {
    "import": (
        "import no_such_module",
        "plugin planted: it is left out: it does not import: the module planted of planted-dist 1.0"
        " (ModuleNotFoundError: No module named 'no_such_module'), but a module that imports is needed;"
        " install the package that has the module 'no_such_module'; or go without it: ",
    ),
    "prints": (f"print('loaded')\n{RIGHT}", "it prints 'loaded' when it is loaded"),
    "factory prints": (
        """
        class Mine:
            @hookimpl
            def sane_progress(self, event): ...
        def sane_plugin(host):
            print("made")
            return Mine()
        """,
        "it prints 'made' when it is loaded",
    ),
    "offer prints": (
        RIGHT.replace("    import torch\n    return", "    import torch\n    print(3)\n    return"),
        "plugin planted: sane_samplers prints '3' to standard output",
    ),
    "reader prints": (
        RIGHT.replace("return None", "print('asked')"),
        "plugin planted, decline what is not its own: it prints 'asked'",
    ),
    "torch": (f"import torch\n{RIGHT}", "loading it imports torch (planted.py, line 2)"),
    "of torch": (
        f"from sane_plugins.weights import WeightGraph\n{RIGHT}",
        "loading it imports torch (planted.py, line 2)",
    ),
    "numpy by another": (
        f"\nimport scipy\n{RIGHT}",
        "loading it imports numpy (planted.py, line 3)",
    ),
    "takes all": (
        """
        from pathlib import Path
        from sane_plugins.errors import SourceError
        @hookimpl
        def sane_open(source):
            if isinstance(source, (str, Path)):
                raise SourceError(source, "a broken file", "a whole one is needed", "write it again")
        """,
        "plugin planted, predict its properties: it makes this fail (",
    ),
    "answers for all": (
        """
        from pathlib import Path
        @hookimpl
        def sane_open(source):
            from torch import nn
            from sane_plugins.weights import from_module
            if isinstance(source, Path):
                return from_module(nn.Linear(2, 2))
        """,
        "plugin planted, write and read a small CNN: it makes this fail (it is not read as it was",
    ),
    "seed": (
        RIGHT.replace(", generator=rng", ""),
        "plugin planted, sampler 'near': the same seed draws other latents",
    ),
    "greedy": (
        RIGHT.replace("return None", "import torch; return source + 1"),
        "plugin planted, sane_open: it raises for a torch module",
    ),
    "misspelt": (RIGHT.replace("sane_samplers", "sane_sampler"), "there is no hook sane_sampler"),
    "wrong kind": (RIGHT.replace('"near"', "7"), "plugin planted: sampler 7 is left out"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(install, fault: str) -> None:
    code, said = FAULTS[fault]
    install("planted", code)
    found = examine(Host.installed(), seconds=PATIENT)
    assert not found.is_well
    assert any(said in x for x in found.complaints), found.complaints
    for complaint in found.complaints:
        assert complaint.startswith("plugin planted")
        assert complaint.endswith("; or go without it: sane-plugins plugins disable planted")
    (report,) = [x for x in found.plugins if x.name == "planted"]
    assert (report.distribution, report.version) == ("planted-dist", "1.0")
    assert "sane_sampler" not in report.hooks
    assert all(x.plugin == "planted" for x in found.trials if x.error)


def test_a_right_plugin_is_tried_and_well(install) -> None:
    install("planted", RIGHT)
    found = examine(Host.installed(), seconds=PATIENT)
    assert found.is_well, found.complaints
    assert {x.what for x in found.trials if x.plugin == "planted"} == {
        "load it in a process of its own",
        "decline what is not its own",
        "sampler 'near'",
    }
    assert not found.notes or "not tried" not in str(found.notes)


def test_what_was_not_tried_is_not_well(install) -> None:
    install("planted", RIGHT)
    done = CliRunner().invoke(main, ["doctor", "--seconds", "0"])
    assert done.exit_code == 3
    assert "All is well" not in done.stdout
    assert "3 checks were not tried; what was tried is well." in done.stdout
    code, told = _run("doctor", "--seconds", "0")
    assert (code, told["well"], told["complaints"]) == (3, False, [])
    (said,) = [x for x in told["notes"] if "not tried" in x]
    assert said.startswith(
        "3 checks were not tried, as the 0 s for plugins were over (--seconds gives"
    )
    assert "sampler 'near' of planted" in said
    own = [x for x in told["self_test"] if not x["plugin"]]
    assert own and not any(x["is_skipped"] for x in own)


def test_a_slow_self_test_takes_no_time_of_plugins(install, monkeypatch) -> None:
    install("planted", RIGHT)
    clock = [0.0]  # moved on by the self-test alone
    monkeypatch.setattr("sane_plugins.doctor.self_test.perf_counter", lambda: clock[0])

    def be_slow(*_: object) -> None:
        clock[0] += 10.0

    monkeypatch.setattr("sane_plugins.doctor.self_test._round_trip", be_slow)
    found = examine(Host.installed(), seconds=0.5)
    (first,) = [x for x in found.trials if x.what == "load it in a process of its own"]
    assert not first.is_skipped


def test_the_self_test_runs_on_one_thread(monkeypatch) -> None:
    counts = []
    monkeypatch.setattr(
        "sane_plugins.doctor.self_test._round_trip",
        lambda *_: counts.append(torch.get_num_threads()),
    )
    with threads(2):
        run_self_test(Host.installed())
        assert torch.get_num_threads() == 2
    assert set(counts) == {1}


def test_what_needs_a_task_is_said_not_to_be_tried(install) -> None:
    install(
        "planted",
        "@hookimpl\ndef sane_transfers(): return {'move': lambda *_: None}",
    )
    found = examine(Host.installed(), seconds=PATIENT)
    assert found.is_well, found.complaints
    assert any(x.endswith("transfer 'move' of planted") for x in found.notes)


def test_a_slow_import_is_no_fault_and_says_what_to_do(install, monkeypatch) -> None:
    monkeypatch.setattr("sane_plugins.plugins.problems.SLOW_SECONDS", 0.05)
    install("planted", f"import time; time.sleep(0.1)\n{RIGHT}")
    host = Host.installed()
    monkeypatch.undo()
    found = report_plugins(host, PluginReplies(host))
    (report,) = [x for x in found if x.name == "planted"]
    assert not report.problems
    assert re.match(r"its import took \d+\.\d s: import libraries late", report.notes[0])


def test_it_says_what_each_plugin_answers(install, tmp_path) -> None:
    install("planted", "@hookimpl\ndef sane_open(source): raise KeyError('oops')")
    path = Host.installed().save(Host.installed().open(nn.Linear(2, 2)), tmp_path / "n.npz")
    found = examine(Host.installed(), str(path), seconds=PATIENT)
    answers = {x.name: x.answers for x in found.plugins}
    assert answers["planted"]["sane_open"] == "fails: KeyError: 'oops'"
    assert answers["builtin"]["sane_open"].startswith("answers with a WeightGraph")
    assert answers["onnx"]["sane_open"] == "passes"
    assert not found.is_well


def test_extras_that_are_missing_say_how_to_install_them(monkeypatch) -> None:
    lines = [
        'onnx>=1.21; extra == "onnx"',
        'no-such-thing>=2; extra == "images"',
        'pluggy>=99.0; extra == "gguf"',
        'ruff; extra == "dev"',
        'no-ray[data, serve]>=2.40; extra == "ray"',
        'sane-plugins[images,ray]; extra == "all"',
        "torch>=2.8",
    ]
    monkeypatch.setattr("sane_plugins.doctor.extras.requires", lambda _: lines)
    extras = {x.name: x for x in list_extras()}
    assert set(extras) == {"onnx", "images", "gguf", "ray", "all"}
    assert extras["ray"].lacking == ("no-ray[data,serve]>=2.40",)
    assert extras["all"].lacking == ("no-such-thing>=2", "no-ray[data,serve]>=2.40")
    assert extras["images"].lacking == ("no-such-thing>=2",)
    assert extras["images"].install_line == "pip install 'sane-plugins[images]'"
    assert extras["gguf"].lacking[0].startswith("pluggy>=99.0 (installed is ")


def test_a_plugin_is_disabled_until_it_is_enabled(monkeypatch) -> None:
    assert _run("plugins", "disable", "TimM") == (
        0,
        {
            "changed": True,
            "disabled": ["timm"],
            "file": str(disabled_file()),
            "not_loaded": {"timm": "run 'sane-plugins plugins enable timm'"},
        },
    )
    assert _run("plugins", "disable", "timm")[1]["changed"] is False
    host = Host.installed()
    assert "timm" not in {x.name for x in host.plugins()}
    assert host.disabled == ["timm"]
    assert not host.problems
    monkeypatch.setenv("SANE_PLUGINS_LOAD", "builtin,timm")  # this process says otherwise
    assert "timm" in {x.name for x in Host.installed().plugins()}
    monkeypatch.delenv("SANE_PLUGINS_LOAD")
    assert _run("plugins", "enable", "timm")[1]["disabled"] == []
    assert "timm" in {x.name for x in Host.installed().plugins()}


def test_a_name_that_nobody_has_is_wrong_usage() -> None:
    done = CliRunner().invoke(main, ["plugins", "disable", "tim"])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: plugin 'tim': no plugin or distribution of that name")
    assert "did you mean timm" in done.stderr
    assert not disabled_file().exists()


def test_a_plugin_that_was_uninstalled_since_can_be_enabled() -> None:
    set_disabled("gone", True)
    assert _run("plugins", "enable", "gone") == (
        0,
        {"changed": True, "disabled": [], "file": str(disabled_file()), "not_loaded": {}},
    )


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_list_that_cannot_be_read_stops_nobody(content) -> None:
    path = disabled_file()
    path.parent.mkdir(parents=True)
    path.mkdir() if content is None else path.write_bytes(content)
    host = Host.installed()
    assert host.open(nn.Linear(2, 2)).size == 6
    assert [x.plugin for x in host.problems] == ["(list of disabled plugins)"]
    done = CliRunner().invoke(main, ["plugins", "disable", "timm"])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


def test_without_any_plugin_of_ours_it_says_so() -> None:
    set_disabled("sane-plugins", True)
    code, told = _run("doctor")
    assert code == 1
    assert any("none of our own plugins" in x for x in told["complaints"])
    assert Path(disabled_file()).read_text() == "sane-plugins\n"
