"""`attach` in the managers of real programs: our hooks answer, the program is as before, `undo` is whole."""

import asyncio
import subprocess
import sys
import textwrap

import pluggy
import pytest
from click.testing import CliRunner
from torch import nn

from sane_plugins import PluginError, SaneError, attach, hookimpl
from sane_plugins.host import Host

pytest_plugins = ["pytester"]


def _host(name: str):
    """Import a program, or skip loudly: the ordinary suite runs without them."""
    return pytest.importorskip(name, reason=f"HOST ABSENT: {name}; run tox -e hosts")


def _manager(program: str) -> pluggy.PluginManager:
    if program == "llm":
        return _host("llm.plugins").pm
    if program == "datasette":
        return _host("datasette.plugins").pm
    if program == "tox":
        return _host("tox.plugin.manager").MANAGER.manager
    if program == "hatch":
        return _host("hatch.plugin.manager").PluginManager().manager
    if program == "hatchling":
        return _host("hatchling.plugin.manager").PluginManager().manager
    if program == "kedro":
        return _host("kedro.framework.hooks.manager")._create_hook_manager()
    return pytest.PytestPluginManager()


PROGRAMS = ("llm", "datasette", "tox", "hatch", "hatchling", "kedro", "pytest")


@pytest.mark.filterwarnings("default")  # of the program's own imports
@pytest.mark.parametrize("program", PROGRAMS)
def test_our_hooks_answer_in_its_manager_and_leave_it_whole(program: str) -> None:
    pm = _manager(program)
    before = pm.list_name_plugin()
    undo = attach(pm)
    try:
        assert pm.hook.sane_open(source=nn.Linear(2, 2)).size == 6
        assert undo.host.predict(nn.Linear(2, 2))
        assert not undo.problems
        assert attach(pm) is undo
        known = {name for name, _ in before}
        ours = [plugin for name, plugin in pm.list_name_plugin() if name not in known]
        assert all(isinstance(plugin.__name__, str) for plugin in ours)
    finally:
        undo()
    assert pm.list_name_plugin() == before
    assert pm.hook.sane_open(source=nn.Linear(2, 2)) is None


class Nameless:
    """A plugin that is an object: it has no name of its own."""

    @hookimpl
    def sane_engines(self):
        return {"nameless": map}


@pytest.mark.filterwarnings("default")
def test_datasette_describes_what_is_registered() -> None:
    pm, app = _manager("datasette"), _host("datasette.app")
    undo = attach(pm)
    undo.host.register(Nameless(), "nameless")
    try:
        program = app.Datasette(memory=True)
        plugins = asyncio.run(program.client.get("/-/plugins.json?all=1")).json()
    finally:
        undo()
    assert {"sane_plugins.builtin", "Nameless"} <= {x["name"] for x in plugins}
    assert app.Datasette(memory=True)


@pytest.mark.filterwarnings("default")
def test_llm_lists_what_is_registered(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    pm, cli = _manager("llm"), _host("llm.cli")
    undo = attach(pm)
    undo.host.register(Nameless(), "nameless")
    try:
        listed = CliRunner().invoke(cli.cli, ["plugins", "--all"])
    finally:
        undo()
    assert listed.exit_code == 0, listed.output
    assert "sane_plugins.builtin" in listed.output and "Nameless" in listed.output


CONFTEST = """
import sane_plugins
def pytest_configure(config):
    config.add_cleanup(sane_plugins.attach(config.pluginmanager))
"""
INSIDE = """
from torch import nn
def test_hooks(pytestconfig):
    hook = pytestconfig.pluginmanager.hook
    assert hook.sane_open(source=nn.Linear(2, 2)).size == 6
    assert {"kde"} <= set().union(*hook.sane_samplers())
"""


@pytest.mark.parametrize("options", [(), ("--trace-config",), ("-p", "no:terminal")])
def test_a_real_run_of_pytest_takes_our_hooks(pytester, options: tuple[str, ...]) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(INSIDE)
    done = pytester.runpytest_subprocess(
        *options, "-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist"
    )
    assert done.ret == 0, done.stdout.str() + done.stderr.str()


@pytest.mark.filterwarnings("default")
def test_naparis_fork_is_refused_in_one_sentence() -> None:
    engine = _host("napari_plugin_engine")
    with pytest.raises(
        PluginError, match=r"host 'napari'.*pluggy\.PluginManager is needed"
    ) as told:
        attach(engine.PluginManager("napari"))
    assert isinstance(told.value, SaneError)
    assert Host.installed().open(nn.Linear(2, 2)).size == 6  # as the sentence says


ALL = """
    import pluggy, sane_plugins
    from torch import nn

    class Older:
        @pluggy.HookspecMarker("host")(firstresult=True)
        def sane_encode(self, source): ...

    class Broken:
        @pluggy.HookspecMarker("host")(firstresult=True)
        def sane_open(self, path): ...

    pm = pluggy.PluginManager("host")
    pm.add_hookspecs(Older)
    undo = sane_plugins.attach(pm)
    assert not undo.problems, undo.problems
    assert pm.hook.sane_open(source=nn.Linear(2, 2)).size == 6
    assert pm.hook.sane_encode(source=nn.Linear(2, 2)).encoder == "sane"
    undo()
    assert not pm.get_plugins()
    pm = pluggy.PluginManager("host")
    pm.add_hookspecs(Broken)
    try:
        sane_plugins.attach(pm)
    except sane_plugins.PluginError as error:
        assert "sane_open lacks source" in str(error)
    else:
        raise AssertionError
    assert not pm.get_plugins()
    print(pluggy.__version__)
"""


@pytest.mark.parametrize("release", ["1.5.0", "1.6.0", "1.7.0"])
def test_releases_of_pluggy(release: str, tmp_path, monkeypatch) -> None:
    """Older ones keep a plugin half registered where registering fails, and read arguments otherwise."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path),
    ]
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)  # it pins another release
    got = subprocess.run([*pip, f"pluggy=={release}"], capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"HOST ABSENT: pip does not reach pluggy {release}")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{textwrap.dedent(ALL)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == release, done.stderr
