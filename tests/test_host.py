"""Hosts: plugins are found, isolated and overridden, and our hooks work in anyone's manager."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pluggy
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import sane_plugins
from sane_plugins.attachment import attach
from sane_plugins.cli.main import main as command
from sane_plugins.errors import PluginError, SourceError, UsageError
from sane_plugins.features import EncodeOptions, embed
from sane_plugins.host import Host
from sane_plugins.initialize import InitializeOptions
from sane_plugins.progress import Progress
from sane_plugins.tasks import load_task
from sane_plugins.weights import from_module

HEADER = "from sane_plugins import hookimpl\n"
ENCODING = """
def encoding(encoder):
    import torch
    from sane_plugins import Encoding
    e, layers = torch.zeros(3), torch.zeros(0, 3)
    return Encoding(latents=None, spans=[], embedding=e, layers=layers, names=(), encoder=encoder)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a real distribution with one plugin module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name: str, code: str, entry: str = "", target: str = "") -> None:
        (tmp_path / f"{name}.py").write_text(HEADER + textwrap.dedent(code))
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[sane_plugins]\n{entry or name} = {target or name}\n"
        )

    yield add
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def _names(host: Host) -> set[str]:
    return {info.name for info in host.plugins()}


def test_built_ins_and_adapters_enter_by_entry_point() -> None:
    assert {"builtin", "onnx", "torchvision"} <= _names(Host.installed())


@pytest.mark.parametrize(
    "code",
    [
        "import no_such_module",
        "1 / 0",
        "import sys; sys.exit(3)",
        "SANE_REQUIRES = (9, 0)",
        "SANE_REQUIRES = '1.0'",
        "def sane_plugin(host): raise KeyError(host)",
        "@hookimpl\ndef sane_open(source, no_such_argument): ...",
    ],
)
def test_a_broken_plugin_is_named_and_left_out(install, code: str) -> None:
    install("broken_plugin", code)
    host = Host.installed()
    assert [problem.plugin for problem in host.problems] == ["broken_plugin"]
    assert "broken_plugin" not in _names(host)
    assert host.open(nn.Linear(2, 2)).size == 6


def test_nobody_takes_the_name_of_a_built_in(install) -> None:
    install("thief_plugin", "", entry="builtin")
    host = Host.installed()
    assert "thief_plugin-dist" in host.problems[0].error
    assert host.open(nn.Linear(2, 2)).size == 6


def test_strict_mode_raises(install, monkeypatch) -> None:
    install("broken_plugin", "1 / 0")
    monkeypatch.setenv("SANE_PLUGINS_STRICT", "1")
    with pytest.raises(PluginError, match="broken_plugin"):
        Host.installed()


@pytest.mark.parametrize("name", ["good_plugin", "good_plugin-dist"])
def test_plugins_are_chosen_by_environment(install, monkeypatch, name: str) -> None:
    install("good_plugin", "@hookimpl\ndef sane_engines(): return {'mine': map}")
    assert "mine" in Host.installed().engines()
    monkeypatch.setenv("SANE_PLUGINS_DISABLE", name)
    assert "good_plugin" not in _names(Host.installed())
    monkeypatch.delenv("SANE_PLUGINS_DISABLE")
    monkeypatch.setenv("SANE_PLUGINS_LOAD", name)
    assert _names(Host.installed()) == {"good_plugin"}


def test_names_are_compared_as_package_indexes_do(monkeypatch) -> None:
    monkeypatch.setenv("SANE_PLUGINS_LOAD", "builtin, Onnx")
    assert _names(Host.installed()) == {"builtin", "onnx"}
    monkeypatch.setenv("SANE_PLUGINS_LOAD", "builtin,no_such")
    assert [problem.plugin for problem in Host.installed().problems] == ["no-such"]
    monkeypatch.setenv("SANE_PLUGINS_DISABLE", "sane_plugins")
    assert not _names(Host.installed())


def test_a_name_given_twice_names_both_plugins(install) -> None:
    install("one_plugin", "@hookimpl\ndef sane_engines(): return {'mine': map}")
    install("two_plugin", "@hookimpl\ndef sane_engines(): return {'mine': filter}")
    host = Host.installed()
    assert host.engines()["mine"] is map  # the first of them in the alphabet
    (problem,) = host.problems
    assert (problem.plugin, problem.place) == ("two_plugin", "engine 'mine'")
    assert "one_plugin" in problem.error


def test_anyone_can_override_an_ability(install) -> None:
    install("mine_plugin", f"{ENCODING}@hookimpl\ndef sane_encode(source): return encoding('mine')")
    assert Host.installed().encode("anything").encoder == "mine"


def test_a_raising_plugin_takes_nobody_down(install) -> None:
    install(
        "raising_plugin",
        """
        @hookimpl
        def sane_open(source): raise KeyError("oops")
        @hookimpl
        def sane_engines(): raise KeyError("oops")
        @hookimpl
        def sane_progress(event): raise KeyError("oops")
        """,
    )
    host = Host.installed()
    assert host.open(nn.Linear(2, 2)).size == 6
    assert "local" in host.engines()
    host.report(None)
    assert {problem.plugin for problem in host.problems} == {"raising_plugin"}
    with pytest.raises(PluginError, match="raising_plugin: it raised KeyError") as caught:
        host.open("no-such-thing")
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("body", ["return ['mine']", "raise SaneError('a', 'b', 'c', 'd')"])
def test_a_wrong_offer_is_left_out(install, body: str) -> None:
    code = f"from sane_plugins.errors import SaneError\n@hookimpl\ndef sane_engines(): {body}"
    install("wrong_plugin", code)
    host = Host.installed()
    assert set(host.engines()) <= {"local", "ray"}
    assert [problem.plugin for problem in host.problems] == ["wrong_plugin"]


WRAPPER = """
@hookimpl(wrapper=True)
def sane_open(source):
    graph = yield
    return graph if graph is None else graph.replace({"bias": graph.tensors["bias"] + 1})
"""
OBJECT = """
class Plugin:
    name = "mine"
    @hookimpl(specname="sane_engines")
    def offered(self): return {self.name: map}
plugin = Plugin()
"""
DECORATED = (
    ENCODING
    + """
from functools import wraps
def decorated(function):
    @wraps(function)
    def call(*arguments, **named): return function(*arguments, **named)
    return call
@hookimpl
@decorated
def sane_encode(source): return encoding("mine: " + source)
"""
)


def test_plugins_of_every_shape(install) -> None:
    install("wrapper_plugin", WRAPPER)
    install("object_plugin", OBJECT, target="object_plugin:plugin")
    install("decorated_plugin", DECORATED)
    host, pm = Host.installed(), _Foreign("host").pm
    attach(pm)
    assert not host.problems
    linear = nn.Linear(2, 2)
    for graph in (host.open(linear), pm.hook.sane_open(source=linear)):
        assert torch.equal(graph.tensors["bias"], linear.bias + 1)
    assert "mine" in host.engines()
    assert "mine" in set().union(*pm.hook.sane_engines())
    for encoding in (host.encode("net"), pm.hook.sane_encode(source="net", options=None)):
        assert encoding.encoder == "mine: net"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def build(classes): raise ValueError('bad width')", "bad width"),
        ("def build(width): ...", "width"),
        ("build = 3", "callable"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_factory_that_fails_is_told_as_such(install, code: str, said: str) -> None:
    install("factory_module", code, target="sane_onnx")
    with pytest.raises(SourceError, match=said):
        Host.installed().build("factory_module:build", 3)


@pytest.mark.parametrize("name", ["small", "wide"])
def test_our_families_are_known_in_either_spelling(name: str) -> None:
    host = Host.installed()
    one, other = (host.open(f"{name}{dash}cnn") for dash in "-_")
    assert one.size == other.size
    for dash in "-_":
        assert host.build(f"{name}{dash}cnn", 7)(torch.zeros(1, 1, 28, 28)).shape == (1, 7)


@pytest.mark.parametrize("way", ["disabled", "not loaded", "unregistered"])
def test_a_plugin_that_is_off_keeps_its_prefix_and_imports_nothing(
    install, monkeypatch, way
) -> None:
    install("hub_plugin", "@hookimpl\ndef sane_open(source): ...", entry="hub")
    install("hub", "raise SystemExit('imported')", entry="other", target="sane_onnx")
    if way == "disabled":
        monkeypatch.setenv("SANE_PLUGINS_DISABLE", "hub")
    if way == "not loaded":
        monkeypatch.setenv("SANE_PLUGINS_LOAD", "builtin")
    host = Host.installed()
    if way == "unregistered":
        host.pm.unregister(name="hub")
    with pytest.raises(SourceError, match="hub:net: no plugin knows it"):
        host.open("hub:net")
    with pytest.raises(SourceError, match="hub:net: no plugin builds"):
        host.build("hub:net")
    assert "hub" not in sys.modules


def test_a_name_alone_is_asked_of_plugins() -> None:
    class Hub:
        @sane_plugins.hookimpl
        def sane_build(self, source):
            return nn.Linear(2, 2) if source == "mine" else None

    host = Host.installed()
    host.register(Hub(), "hub")
    assert isinstance(host.build("mine"), nn.Linear)


def test_an_unknown_source_says_the_way_out() -> None:
    with pytest.raises(SourceError, match="sane-plugins list"):
        Host.installed().open("no-such-thing")


@pytest.mark.parametrize("ask", [Host.open, Host.build])
def test_of_a_file_of_code_a_function_is_named(tmp_path, monkeypatch, ask) -> None:
    (tmp_path / "my_nets.py").write_text("def net(): ...\n")
    monkeypatch.chdir(tmp_path)
    for source in ("my_nets.py", tmp_path / "my_nets.py"):
        with pytest.raises(
            SourceError, match=r"write my_nets:function with the function's name\.$"
        ):
            ask(Host.installed(), source)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(SourceError, match=r"my_nets:function .* put \.\. on PYTHONPATH"):
        ask(Host.installed(), "../my_nets.py")
    with pytest.raises(SourceError, match=r"write my_nets:net\."):
        ask(Host.installed(), "my_nets.py:net")


def test_a_file_is_not_told_of_what_nobody_can_type(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("no network")
    with pytest.raises(SourceError) as caught:
        Host.installed().open(tmp_path / "notes.txt")
    assert "package.module:function" in caught.value.needed
    assert "module, a state dict" not in caught.value.needed
    with pytest.raises(SourceError, match="a module, a state dict"):
        Host.installed().open(3)


def test_open_save_and_build(tmp_path) -> None:
    host, network = Host.installed(), nn.Linear(3, 2)
    path = host.save(host.open(network), tmp_path / "net.safetensors")
    assert torch.equal(host.open(path).tensors["weight"], network.weight)
    assert torch.equal(host.open(network.state_dict()).tensors["bias"], network.bias)
    with pytest.raises(UsageError, match="--force"):
        host.save(host.open(network), path)
    with pytest.raises(UsageError, match=r"\.xyz"):
        host.save(host.open(network), tmp_path / "net.xyz")
    built = host.build("sane_plugins.architectures.families:small_cnn", 7)
    assert built(torch.zeros(1, 1, 28, 28)).shape == (1, 7)
    assert host.build("small-cnn", 7)(torch.zeros(1, 1, 28, 28)).shape == (1, 7)
    assert host.open("small-cnn").size == 2464


def test_encoders_and_samplers_are_offered() -> None:
    host = Host.installed()
    assert {"sane", "statistics"} <= set(host.encoders())
    assert {"kde", "gaussian"} <= set(host.samplers())


class _Foreign:
    """A host program with a plugin manager of its own."""

    def __init__(self, project: str) -> None:
        self.pm = pluggy.PluginManager(project)


@pytest.mark.parametrize("project", ["host", "pytest", "sane_plugins"])
def test_attach_to_a_host(project: str) -> None:
    pm = _Foreign(project).pm
    undo = attach(pm)
    assert pm.hook.sane_open(source=nn.Linear(2, 2)).size == 6
    assert {"kde"} <= set().union(*pm.hook.sane_samplers())
    pm.check_pending()
    count = len(pm.get_plugins())
    attach(pm)
    assert len(pm.get_plugins()) == count
    undo()
    assert pm.hook.sane_open(source=nn.Linear(2, 2)) is None
    sane_plugins.attach(pm)
    assert pm.hook.sane_open(source=nn.Linear(2, 2)).size == 6


def test_attach_to_a_host_that_knows_some_of_it() -> None:
    pm = _Foreign("host").pm

    class Mine:
        @pluggy.HookimplMarker("host")
        def sane_open(self, source): ...

    pm.register(Mine())
    attach(pm)
    assert pm.hook.sane_open(source=nn.Linear(2, 2)).size == 6
    host = Host.installed()
    attach(host.pm)
    assert "kde" in host.samplers()


def test_attach_names_what_was_left_out(install) -> None:
    install("broken_plugin", "1 / 0")
    assert [x.plugin for x in attach(_Foreign("host").pm).problems] == ["broken_plugin"]


def test_two_hosts_in_one_process() -> None:
    first, second = _Foreign("one").pm, _Foreign("two").pm
    undo = attach(first)
    attach(second)
    undo()
    assert second.hook.sane_open(source=nn.Linear(2, 2)).size == 6


def test_a_hosts_own_plugin_overrides_ours() -> None:
    pm = _Foreign("host").pm
    attach(pm)

    class Mine:
        @pluggy.HookimplMarker("host")
        def sane_encode(self, source):
            return f"mine: {source}"

    pm.register(Mine())
    assert pm.hook.sane_encode(source="net", options=None) == "mine: net"


class _Theirs:
    """A plugin of a host program: a kind of source, and an observer of jobs."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @pluggy.HookimplMarker("host")
    def sane_open(self, source):
        return from_module(nn.Linear(3, 2)) if source == "mine:net" else None

    @pluggy.HookimplMarker("host")
    def sane_progress(self, event):
        self.events.append(event.job)


def test_abilities_use_the_plugins_of_the_manager_they_are_attached_to(monkeypatch) -> None:
    pm, theirs = _Foreign("host").pm, _Theirs()
    pm.register(theirs)
    attach(pm)
    monkeypatch.setattr(
        "sane_plugins.plugins.registry.installed_points", lambda *_: pytest.fail("loaded again")
    )
    options = EncodeOptions(encoder="statistics")
    assert pm.hook.sane_encode(source="mine:net", options=options).names == ("weight",)
    assert "gap" in pm.hook.sane_predict_properties(source="mine:net", options=None)
    assert attach(pm).host.encode("mine:net", options).names == ("weight",)
    wide = nn.Linear(128, 2000)  # long enough to be reported
    pm.hook.sane_encode(source=wide, options=None)
    pm.hook.sane_predict_properties(source=wide, options=None)
    assert theirs.events.count("encode") > 1
    task = load_task("digits", size=28)
    options = InitializeOptions(candidates=1, keep=1, rung=3)
    prompts = [nn.Sequential(nn.Flatten(), nn.Linear(784, 10))]
    pm.hook.sane_initialize(target=lambda: prompts[0], task=task, prompts=prompts, options=options)
    assert "make and rank" in theirs.events


def test_a_plugin_that_the_manager_puts_out_stops_acting() -> None:
    pm, model = _Foreign("host").pm, nn.Linear(2, 2)
    pm.set_blocked("sane_plugins:timm")
    undo = attach(pm)
    assert not pm.has_plugin("sane_plugins:timm")
    assert pm.hook.sane_encode(source=model, options=EncodeOptions(encoder="statistics"))
    pm.unregister(name="sane_plugins:torchvision")
    with pytest.raises(SourceError, match="no plugin knows it"):
        pm.hook.sane_encode(source="torchvision:resnet18", options=None)
    pm.set_blocked("sane_plugins:builtin")
    assert pm.hook.sane_encode(source=model, options=None) is None
    undo()


WITH_HOST = (
    ENCODING
    + """
class Mine:
    def __init__(self, host): self.host = host
    @hookimpl
    def sane_encode(self, source): return encoding(str(self.host.open(source).size))
sane_plugin = Mine
"""
)


def test_a_plugin_can_ask_for_its_host(install) -> None:
    install("asking_plugin", WITH_HOST)
    first, second, pm = Host.installed(), Host.installed(), _Foreign("host").pm
    pm.register(_Theirs())
    attach(pm)
    assert first.encode(nn.Linear(2, 2)).encoder == second.encode(nn.Linear(2, 2)).encoder == "6"
    assert pm.hook.sane_encode(source="mine:net", options=None).encoder == "8"
    with pytest.raises(SourceError, match="mine:net"):
        first.encode("mine:net")
    assert "asking_plugin" in _names(first)


def test_a_plugin_of_a_taken_name_leaves_the_first_alone() -> None:
    host = Host.installed()
    with pytest.raises(ValueError, match="already"):
        host.register(_Theirs(), "onnx")
    assert "onnx" in _names(host)


def test_threads_that_attach_to_one_manager_do_not_race() -> None:
    pm, start = _Foreign("host").pm, Barrier(8)

    def attached(_: int) -> object:
        start.wait()
        return attach(pm)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(attached, range(8)))) == 1
    assert len(pm.hook.sane_samplers()) == 1


def test_a_specification_that_lacks_arguments_leaves_nothing_behind() -> None:
    pm = _Foreign("host").pm

    class Older:
        @pluggy.HookspecMarker("host")(firstresult=True)
        def sane_encode(self, options): ...

    pm.add_hookspecs(Older)
    with pytest.raises(PluginError, match="specification of sane_encode lacks source"):
        attach(pm)
    assert not pm.get_plugins()


def test_a_specification_without_options_calls_us_with_the_defaults(install) -> None:
    """The program's own calls cannot name what its specification lacks; ours through the host can."""
    install(
        "wrapping_plugin",
        """
        @hookimpl(wrapper=True)
        def sane_encode(source, options):
            encoding = yield
            return encoding if options is None else encoding
        """,
    )
    pm = _Foreign("host").pm

    class Older:
        @pluggy.HookspecMarker("host")(firstresult=True)
        def sane_encode(self, source): ...
        @pluggy.HookspecMarker("host")(firstresult=True)
        def sane_build(self, source): ...

    pm.add_hookspecs(Older)
    attached, model = attach(pm), nn.Linear(2, 2)
    assert not attached.problems
    assert pm.hook.sane_encode(source=model).encoder == "sane"
    options = EncodeOptions(encoder="statistics")
    assert attached.host.encode(model, options).encoder == "statistics"
    assert pm.hook.sane_build(source="small-cnn")(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    assert attached.host.build("small-cnn", 7)(torch.zeros(1, 1, 28, 28)).shape == (1, 7)


def test_strict_mode_leaves_nothing_behind(install, monkeypatch) -> None:
    install("broken_plugin", "1 / 0")
    monkeypatch.setenv("SANE_PLUGINS_STRICT", "1")
    pm = _Foreign("host").pm
    with pytest.raises(PluginError, match="broken_plugin"):
        attach(pm)
    assert not pm.get_plugins()


def test_a_manager_that_is_not_pluggys_is_refused_in_one_sentence() -> None:
    class Fork:
        project_name = "napari"

    with pytest.raises(PluginError, match=r"host 'napari'.*pluggy.PluginManager is needed"):
        attach(Fork())


def test_a_manager_that_looks_at_its_own_names_only() -> None:
    pm = pytest.PytestPluginManager()
    attach(pm)
    assert pm.hook.sane_open(source=nn.Linear(2, 2)).size == 6


class _Observer:
    def __init__(self) -> None:
        self.events: list[Progress] = []

    @sane_plugins.hookimpl
    def sane_progress(self, event):
        self.events.append(event)


def test_hosts_in_threads_hear_of_their_own_jobs_only() -> None:
    """A report is passed on, so that whoever runs a job in a pool of threads hears of it too."""
    hosts = [Host.installed() for _ in range(2)]
    observers = [_Observer() for _ in hosts]
    for host, observer in zip(hosts, observers, strict=True):
        host.register(observer, "observer")
    module, options = nn.Linear(128, 2000), EncodeOptions(report=hosts[0].report)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(embed, from_module(module, "first"), options).result()
    hosts[1].encode(module)
    assert [{event.note for event in x.events} for x in observers] == [{"first"}, {"Linear"}]


def test_everything_that_is_registered_has_a_name() -> None:
    pm = _Foreign("host").pm
    attach(pm)
    names = {plugin.__name__ for plugin in pm.get_plugins()}
    assert {"sane_plugins", "sane_plugins.builtin", "sane_onnx", "sane_torchvision"} <= names


COMMANDS = """
import click
from sane_plugins.errors import SourceError
@click.command()
def mine(): click.echo("ran")
@click.command()
def failing(): raise SourceError("a", "b", "c", "d")
@click.command("list")
def ours(): click.echo("stolen")
@hookimpl
def sane_commands(): return [mine, failing, ours]
"""


def test_plugins_add_commands(install) -> None:
    install("command_plugin", COMMANDS)
    run = CliRunner().invoke
    assert "mine" in run(command, ["--help"]).stdout
    assert run(command, ["mine"]).stdout == "ran\n"
    assert "stolen" not in run(command, ["list"]).output
    failed = run(command, ["failing"])
    assert failed.exit_code == 1
    assert "Error: a: b, but c; d." in failed.stderr


def test_help_and_own_commands_survive_colliding_commands(install) -> None:
    install("one_plugin", COMMANDS)
    install("two_plugin", COMMANDS)
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    assert "one_plugin" in done.stderr and "two_plugin" in done.stderr
    assert CliRunner().invoke(command, ["list", "--json"]).exit_code == 0


def test_strict_mode_is_one_sentence_in_commands(install, monkeypatch) -> None:
    install("broken_plugin", "1 / 0")
    monkeypatch.setenv("SANE_PLUGINS_STRICT", "1")
    for arguments in (["--help"], ["list"]):
        done = CliRunner().invoke(command, arguments)
        assert done.stderr.startswith("Error: plugin broken_plugin")
        assert done.stderr.count("\n") == 1


def test_a_plugin_that_fails_late_is_noted(install) -> None:
    install("late_plugin", "@hookimpl\ndef sane_engines(): raise KeyError('oops')")
    done = CliRunner().invoke(command, ["list"])
    assert done.exit_code == 0
    assert done.stderr == (
        "Note: plugin late_plugin: sane_engines is left out: KeyError: 'oops';"
        " to go without it, run 'sane-plugins plugins disable late_plugin'\n"
    )


def test_markers_and_host_import_without_torch() -> None:
    code = "import sys, sane_plugins, sane_plugins.host; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_abilities_see_plugins_that_were_registered_by_hand() -> None:
    class Mine:
        @sane_plugins.hookimpl
        def sane_open(self, source):
            return from_module(nn.Sequential(nn.Linear(2, 2))) if source == "mine" else None

    host = Host.installed()
    host.pm.register(Mine())
    options = EncodeOptions(encoder="statistics")
    assert host.encode("mine", options).names == ("0.weight",)


def test_a_wrapper_sees_and_changes_the_answer() -> None:
    class Loud:
        @sane_plugins.hookimpl(wrapper=True)
        def sane_open(self):
            answer = yield
            return answer.replace({"bias": torch.ones(2)})

    host = Host.installed()
    host.pm.register(Loud())
    assert host.open(nn.Linear(2, 2)).tensors["bias"].tolist() == [1, 1]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_wrapper_that_fails_is_named(when: str) -> None:
    class Failing:
        @sane_plugins.hookimpl(wrapper=True)
        def sane_open(self):
            if when == "before":
                raise KeyError("oops")
            yield
            raise KeyError("oops")

    host = Host.installed()
    host.pm.register(Failing(), name="failing")
    assert host.open(nn.Linear(2, 2)).size == 6
    assert [(x.plugin, x.error) for x in host.problems] == [("failing", "KeyError: 'oops'")]
