"""What is said of plugins that do not load, and of those that are disabled: who, where, and the way out."""

import json
import pickle

import pytest
from click.testing import CliRunner
from torch import nn

from sane_plugins import Host
from sane_plugins.cli.initialization.inputs import resolve_sampler
from sane_plugins.cli.main import main
from sane_plugins.doctor.load_alone import require_light_load
from sane_plugins.doctor.plugin_report import PluginReplies
from sane_plugins.errors import PluginError, SaneError, SourceError, UsageError
from sane_plugins.features import EncodeOptions
from sane_plugins.plugins import set_disabled
from sane_plugins.testing import ContractError

READER = """
from pathlib import Path
from sane_plugins.errors import SourceError

@hookimpl
def sane_open(source):
    if isinstance(source, (str, Path)) and Path(source).suffix == ".planted":
        raise SourceError(source, "a broken file", "a whole one is needed", "write it again")

@hookimpl
def sane_samplers():
    return {"near": lambda prompts, count, rng: prompts}

@hookimpl
def sane_encoders():
    from sane_plugins.features import ENCODERS
    return {"mine": ENCODERS["sane"]}
"""

NOT_LOADED = {
    "module": (
        "import no_such_thing.deep",
        "",
        "the module planted of planted-dist 1.0 (ModuleNotFoundError: No module named 'no_such_thing'), but a"
        " module that imports is needed; install the package that has the module 'no_such_thing'.",
    ),
    "name": (
        "from json import no_such_name",
        "",
        "install the version of json that it was written for.",
    ),
    "ours": (
        "from sane_plugins import NoSuchName",
        "",
        "install versions of it and of sane-plugins that belong together.",
    ),
    "raises": (
        "1 / 0",
        "",
        "the module planted of planted-dist 1.0 (ZeroDivisionError: division by zero), but",
    ),
    "long": (
        "raise ValueError('x' * 10_000)",
        "",
        "but a module that imports is needed; its author is to repair it.",
    ),
    "no module": (
        "",
        "no_such_thing",
        "its entry point names the module no_such_thing of planted-dist 1.0 (ModuleNotFoundError: No module"
        " named 'no_such_thing'), but a module that imports is needed; correct it in the plugin's pyproject",
    ),
    "no attribute": (
        "class Plugin: ...",
        "planted:Plugni",
        "its entry point is 'planted:Plugni' of planted-dist 1.0, and the module planted has no attribute"
        " 'Plugni', but the name of a module, or module:object, is needed; did you mean Plugin? correct it",
    ),
    "no deeper attribute": (
        "class Plugin: ...",
        "planted:Plugin.make",
        "and the object Plugin has no attribute 'make'",
    ),
    "argument": (
        "@hookimpl\ndef sane_open(path): ...",
        "",
        "its sane_open takes 'path', and the arguments of that hook are source: they are given by name",
    ),
    "argument of none": (
        "@hookimpl\ndef sane_samplers(host): ...",
        "",
        "its sane_samplers takes 'host', and the arguments of that hook are none",
    ),
    "argument with a default": (
        "@hookimpl\ndef sane_open(path=None): ...",
        "",
        "its sane_open takes 'path=None', and the arguments of that hook are source",
    ),
    "no named argument": (
        "@hookimpl\ndef sane_save(*args, **kwargs): ...",
        "",
        "takes '*args, **kwargs', and the arguments of that hook are graph, target, metadata, like",
    ),
    "keyword": (
        "@hookimpl\ndef sane_open(*, source): ...",
        "",
        "its sane_open has arguments behind a '*': write them without it",
    ),
    "plain wrapper": (
        "@hookimpl(wrapper=True)\ndef sane_open(source): ...",
        "",
        "sane_open is marked as a wrapper and does not yield: mark it with hookimpl alone",
    ),
}


@pytest.mark.parametrize("fault", NOT_LOADED)
def test_what_does_not_load_is_said_with_the_way_out(install, fault: str) -> None:
    code, point, said = NOT_LOADED[fault]
    install("planted", code, point)
    host = Host.installed()
    (problem,) = host.problems
    assert problem.plugin == "planted"
    assert said in problem.error
    assert host.origin("planted") == ("planted-dist", "1.0")
    assert host.way_without("planted") == "sane-plugins plugins disable planted"


def test_a_module_that_a_hook_lacks_is_to_be_installed(install) -> None:
    install("planted", "@hookimpl\ndef sane_samplers(): import no_such_thing")
    host = Host.installed()
    host.samplers()
    assert host.problems[0].error == (
        "ModuleNotFoundError: No module named 'no_such_thing': install the package that has that module"
    )


def test_what_commands_import_is_found_with_its_line(install) -> None:
    install(
        "planted",
        """
        @hookimpl
        def sane_commands():
            import numpy
            return []
        """,
    )
    with pytest.raises(ContractError, match=r"imports numpy \(planted\.py, line 5\)"):
        require_light_load("planted", "planted-dist")


def test_what_a_process_prints_without_python_is_found(install) -> None:
    install("planted", "import os\nos.write(1, b'raw')\n@hookimpl\ndef sane_samplers(): return {}")
    with pytest.raises(ContractError, match="it prints 'raw' when it is loaded"):
        require_light_load("planted", "planted-dist")


def test_all_that_is_wrong_with_loading_is_said_at_once(install) -> None:
    install("planted", "print('loaded')\nimport numpy\n@hookimpl\ndef sane_samplers(): return {}")
    with pytest.raises(ContractError, match=r"it prints 'loaded' .*; and loading it imports numpy"):
        require_light_load("planted", "planted-dist")


def test_what_ends_its_process_is_found(install) -> None:
    install("planted", "import os, sys\nif sys.argv[1:2] == ['planted']: os._exit(7)")
    with pytest.raises(
        ContractError, match=r"it ends the process that loads it alone \(exit code 7"
    ):
        require_light_load("planted", "planted-dist")


def test_arguments_that_are_right_are_taken(install) -> None:
    install(
        "planted",
        """
        @hookimpl
        def sane_open(source, _seen={}): ...
        @hookimpl
        def sane_save(target, **others): ...
        @hookimpl
        def sane_build(): ...
        @hookimpl(optionalhook=True)
        def sane_of_the_future(anything): ...
        """,
    )
    assert not Host.installed().problems


def test_a_misspelt_hook_is_no_offer(install) -> None:
    install("planted", "@hookimpl\ndef sane_opne(source): ...")
    (info,) = [x for x in Host.installed().plugins() if x.name == "planted"]
    assert info.hooks == ()


def test_commands_say_how_to_go_without_a_plugin(install) -> None:
    install("planted", "1 / 0")
    done = CliRunner().invoke(main, ["list"])
    line = "run 'sane-plugins plugins disable planted'"
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(
        f"repair it; to go without it, {line}\n"
    )
    assert "disable" in done.stdout


def test_an_error_of_a_reader_names_its_plugin(install, tmp_path) -> None:
    install("planted", READER)
    (path := tmp_path / "n.planted").write_bytes(b"x")
    with pytest.raises(
        SourceError, match=r"^plugin planted: .*n\.planted: a broken file, but"
    ) as caught:
        Host.installed().encode(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert caught.value.place == str(path)
    done = CliRunner().invoke(main, ["inspect", str(path)])
    assert done.stderr.startswith("Error: plugin planted: ")
    with pytest.raises(SourceError, match=r"^.*none\.safetensors: ") as ours:
        Host.installed().open(tmp_path / "none.safetensors")
    assert "plugin" not in str(ours.value)


def test_a_reader_that_asks_its_host_is_not_named_for_others(install, tmp_path) -> None:
    install(
        "planted",
        """
        class Mine:
            def __init__(self, host): self.host = host
            @hookimpl
            def sane_open(self, source):
                if str(source).startswith("mine:"):
                    return self.host.open(str(source)[5:])
        sane_plugin = Mine
        """,
    )
    (path := tmp_path / "n.safetensors").write_bytes(b"x")
    with pytest.raises(SourceError) as caught:
        Host.installed().open(f"mine:{path}")
    assert caught.value.plugin == ""


@pytest.fixture
def zipped(tmp_path):
    """Return a zip archive that is none of our forms."""
    import zipfile

    with zipfile.ZipFile(path := tmp_path / "n.planted", "w") as archive:
        archive.writestr("header.json", "{}")
    return path


def _as_torch(path):
    return path.rename(path.with_suffix(".pt")) if path.exists() else path.with_suffix(".pt")


WAY = "what is disabled and may know it, planted: run 'sane-plugins plugins enable planted"
ASKED = {
    "file": lambda host, path: host.open(path),
    "file of no form": lambda host, path: (path.write_bytes(b"?"), host.open(path)),
    "file of another suffix": lambda host, path: host.open(_as_torch(path)),
    "folder": lambda host, path: host.open(path.parent / "config"),
    "name": lambda host, _: host.open("planted:net"),
    "network": lambda host, _: host.build("planted:net"),
    "prompt": lambda host, _: host.prompt_network("planted-net"),
    "sampler": lambda host, _: resolve_sampler(host, "near"),
    "encoder": lambda host, _: host.encode(nn.Linear(2, 2), EncodeOptions(encoder="mine")),
    "engine": lambda host, _: host.engine("mine"),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("disabled", ["planted", "planted-dist"])
def test_what_nobody_knows_hints_at_disabled_plugins(install, zipped, asked, disabled) -> None:
    install("planted", READER)
    set_disabled(disabled, True)
    with pytest.raises(SaneError) as caught:
        ASKED[asked](Host.installed(), zipped)
    assert str(caught.value).count("what is disabled") == 1
    assert WAY in str(caught.value)
    set_disabled(disabled, False)
    if asked in ("sampler", "encoder"):
        return
    with pytest.raises(SaneError) as caught:
        ASKED[asked](Host.installed(), zipped)
    assert "disabled" not in str(caught.value)


def test_a_broken_file_of_ours_hints_at_nobody(install, tmp_path) -> None:
    install("planted", READER)
    set_disabled("planted", True)
    (path := tmp_path / "n.safetensors").write_bytes(b"x")
    with pytest.raises(SourceError) as caught:
        Host.installed().open(path)
    assert "disabled" not in str(caught.value)


def test_the_environment_is_the_way_where_it_disables(install, monkeypatch) -> None:
    install("planted", READER)
    monkeypatch.setenv("SANE_PLUGINS_DISABLE", "planted-dist")
    with pytest.raises(UsageError, match="planted: take it out of SANE_PLUGINS_DISABLE"):
        resolve_sampler(Host.installed(), "near")
    monkeypatch.delenv("SANE_PLUGINS_DISABLE")
    monkeypatch.setenv("SANE_PLUGINS_LOAD", "sane-plugins")
    with pytest.raises(UsageError, match="planted: name it in SANE_PLUGINS_LOAD"):
        resolve_sampler(Host.installed(), "near")


def test_list_and_doctor_show_what_is_disabled(install) -> None:
    install("planted", READER)
    set_disabled("planted-dist", True)
    told = json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)
    way = "run 'sane-plugins plugins enable planted-dist'"
    assert told["disabled"] == [
        {"name": "planted", "distribution": "planted-dist", "version": "1.0", "to_enable": way}
    ]
    assert "planted-dist" in CliRunner().invoke(main, ["list"]).stdout
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "disabled plugins" in done.stdout and "planted-dist" in done.stdout


def test_enabling_says_what_still_keeps_a_plugin_from_loading(install, monkeypatch) -> None:
    install("planted", READER)
    set_disabled("planted-dist", True)
    done = CliRunner().invoke(main, ["plugins", "enable", "planted"])
    assert "enabled already" not in done.stdout
    way = "run 'sane-plugins plugins enable planted-dist'"
    assert f"The plugin planted is still kept from loading: {way}." in done.stdout
    told = json.loads(CliRunner().invoke(main, ["plugins", "enable", "planted", "--json"]).stdout)
    assert told["not_loaded"] == {"planted": way}
    set_disabled("planted", True)
    done = CliRunner().invoke(main, ["plugins", "enable", "planted-dist"])
    assert "planted-dist is enabled." in done.stdout
    assert "still kept from loading: run 'sane-plugins plugins enable planted'." in done.stdout
    monkeypatch.setenv("SANE_PLUGINS_DISABLE", "planted")
    done = CliRunner().invoke(main, ["plugins", "enable", "planted"])
    assert "still kept from loading: take it out of SANE_PLUGINS_DISABLE." in done.stdout
    monkeypatch.delenv("SANE_PLUGINS_DISABLE")
    done = CliRunner().invoke(main, ["plugins", "enable", "planted"])
    assert "planted was enabled already." in done.stdout and "still kept" not in done.stdout


def test_a_file_of_another_plugin_is_passed_by_ours(zipped, tmp_path) -> None:
    host = Host.installed()
    answers = {
        plugin: x["sane_open"] for plugin, x in PluginReplies(host, str(zipped)).answers.items()
    }
    assert answers["builtin"] == "passes: it is a zip archive of other files"
    (broken := tmp_path / "n.safetensors").write_bytes(b"x")
    answers = {
        plugin: x["sane_open"] for plugin, x in PluginReplies(host, str(broken)).answers.items()
    }
    assert answers["builtin"].startswith("refuses: ")
    assert not any(x.startswith("fails") for x in answers.values())


def test_a_hook_alone_is_listed(install) -> None:
    install("planted", READER)
    done = CliRunner().invoke(main, ["list", "--hook", "sane_samplers"])
    assert "near" in done.stdout and "planted" in done.stdout
    assert "property heads" not in done.stdout and "licence" not in done.stdout
    told = json.loads(CliRunner().invoke(main, ["list", "--hook", "sane_open", "--json"]).stdout)
    assert "planted" in {x["name"] for x in told["plugins"]}
    assert not {"samplers", "prompts", "encoders"} & told.keys()
    done = CliRunner().invoke(main, ["list", "--hook", "sane_opne"])
    assert done.exit_code == 2 and "did you mean sane_open" in done.stderr


def test_the_engine_of_a_library_that_is_not_there_is_no_offer(monkeypatch) -> None:
    monkeypatch.setattr("sane_ray.find_spec", lambda _: None)
    monkeypatch.setattr("sane_plugins.host.host.own_extras", lambda: {"ray"})
    host = Host.installed()
    assert "ray" not in host.engines()
    with pytest.raises(UsageError, match="run pip install 'sane-plugins\\[ray\\]'"):
        host.engine("ray")


def test_strict_mode_names_the_command(install, monkeypatch) -> None:
    install("planted", "1 / 0")
    monkeypatch.setenv("SANE_PLUGINS_STRICT", "1")
    with pytest.raises(PluginError, match="run 'sane-plugins plugins disable planted'"):
        Host.installed()
