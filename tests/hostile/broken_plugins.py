"""Broken plugins as installed distributions: what each does wrong, and what must be said of it."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

HEADER = "from sane_plugins import hookimpl\n"

AT_IMPORT: dict[str, tuple[str, str]] = {
    "raising_at_import": ("1 / 0", "ZeroDivisionError"),
    "exiting_at_import": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "stopping_at_import": ("class Stop(BaseException): ...\nraise Stop('enough')", "Stop: enough"),
    "newer_than_us": ("SANE_REQUIRES = (9, 0)", "requires hooks (9, 0)"),
    "wrong_requirement": ("SANE_REQUIRES = '1.0'", "its SANE_REQUIRES is '1.0'"),
    "wrong_signature": ("@hookimpl\ndef sane_open(source, no_such): ...", "no_such"),
    "async_hook": ("@hookimpl\nasync def sane_open(source): ...", "async def sane_open"),
    "yielding_hook": ("@hookimpl\ndef sane_open(source): yield", "yields"),
    "none_factory": ("def sane_plugin(host): return None", "sane_plugin(host) must return"),
    "raising_factory": ("def sane_plugin(host): raise KeyError('no')", "KeyError: 'no'"),
    "awaited_factory": ("async def sane_plugin(host): ...", "coroutine"),
    "raising_getattr": ("def __getattr__(name): raise OSError('no ' + name)", "OSError: no SANE"),
    "unshown_error": (
        "class Bad(Exception):\n    def __str__(self): raise OSError\nraise Bad",
        "Bad: its message cannot be shown",
    ),
    "long_error": ("raise ValueError('x' * 10**7)", "ValueError: xxx"),
    "class_of_hooks": (
        "class P:\n    @hookimpl\n    def sane_open(self, source): ...\nsane_plugin = lambda h: P",
        "it is the class P",
    ),
    "equal_to_all": (
        "class P:\n    def __eq__(self, other): return True\nsane_plugin = lambda h: P()",
        "equal to any",
    ),
}
"""By the name of the plugin: its code, and a part of the reason for leaving it out."""

AT_CALL: dict[str, tuple[str, str]] = {
    "raising_open": (
        "@hookimpl\ndef sane_open(source): raise KeyError('oops')",
        "KeyError: 'oops'",
    ),
    "exiting_open": ("@hookimpl\ndef sane_open(source): raise SystemExit(0)", "SystemExit: 0"),
    "text_for_a_graph": (
        "@hookimpl(tryfirst=True)\ndef sane_open(source): return 'a graph'",
        "returned a str where a WeightGraph",
    ),
    "coroutine_for_a_graph": (
        "async def later(): ...\n@hookimpl\ndef sane_open(source): return later()",
        "returned a coroutine",
    ),
    "swallowing_wrapper": (
        "@hookimpl(wrapper=True)\ndef sane_open(source): yield",
        "returned None in place of the answer",
    ),
    "raising_wrapper": (
        "@hookimpl(wrapper=True)\ndef sane_open(source):\n    raise OSError('early')\n    yield",
        "OSError: early",
    ),
    "old_wrapper": (
        "@hookimpl(hookwrapper=True)\ndef sane_open(source):\n"
        "    result = yield\n    result.force_result('mine')",
        "returned a str where a WeightGraph",
    ),
    "twice_wrapper": (
        "@hookimpl(wrapper=True)\ndef sane_open(source):\n    yield\n    yield",
        "yields twice",
    ),
    "taker_of_names": (
        "@hookimpl(tryfirst=True)\ndef sane_samplers(): return {'kde': lambda *_: None}",
        "builtin offers one of that name",
    ),
    "no_head": (
        "@hookimpl\ndef sane_property_heads(): return {'acc2': 'no head'}",
        "a str without",
    ),
    "names_no_texts": (
        "@hookimpl\ndef sane_encoders():\n    from sane_plugins.features import ENCODERS\n"
        "    return {key: ENCODERS['sane'] for key in (3, None, '', 'a\\nb')}",
        "its name is an int",
    ),
    "no_prompts": (
        "@hookimpl\ndef sane_prompts(): return {'mine': 3, 'photo': print}",
        "an int where a PromptOffer",
    ),
    "no_published_networks": (
        "@hookimpl\ndef sane_published_networks(): return {'mine': 3, 'net': print}",
        "an int where a PublishedNetwork",
    ),
    "list_of_engines": ("@hookimpl\ndef sane_engines(): return ['mine']", "a list where a mapping"),
    "generated_samplers": (
        "@hookimpl\ndef sane_samplers(): return (x for x in 'ab')",
        "returned a generator",
    ),
    "exiting_samplers": ("@hookimpl\ndef sane_samplers(): raise SystemExit", "SystemExit"),
    "raising_encoders": (
        "from sane_plugins.errors import SaneError\n"
        "@hookimpl\ndef sane_encoders(): raise SaneError('a', 'b', 'c', 'd')",
        "a: b, but c",
    ),
    "no_commands": ("@hookimpl\ndef sane_commands(): return [print]", "where a click.Command"),
    "our_command": (
        "import click\n@click.command('list')\ndef mine(): ...\n"
        "@hookimpl\ndef sane_commands(): return [mine]",
        "the name of one of ours",
    ),
    "helpless_command": (
        "import click\n@hookimpl\ndef sane_commands(): return [click.Command('mine', help=3)]",
        "Error",
    ),
    "forcing_wrapper": (
        "@hookimpl(hookwrapper=True)\ndef sane_open(source):\n"
        "    result = yield\n    result.force_exception(KeyError('forced'))",
        "KeyError: 'forced'",
    ),
    "endless_engines": (
        "from collections.abc import Mapping\nfrom itertools import count\n"
        "class M(dict):\n    def items(self): return ((str(i), map) for i in count())\n"
        "@hookimpl\ndef sane_engines(): return M()",
        "more than 1000",
    ),
    "async_command": (
        "import click\n@click.command()\nasync def later(): ...\n"
        "@hookimpl\ndef sane_commands(): return [later]",
        "async def",
    ),
    "silent_error": (
        "from sane_plugins.errors import SaneError\nclass Silent(SaneError):\n"
        "    def __init__(self): ...\n@hookimpl\ndef sane_engines(): raise Silent",
        "Silent",
    ),
    "masked_name": (
        "class S(str):\n    def __str__(self): return '\\x1b[31m'\n"
        "@hookimpl\ndef sane_engines(): return {S('mine'): map}",
        "printable",
    ),
    "raising_observer": ("@hookimpl\ndef sane_progress(event): raise OSError('no')", "OSError: no"),
    "printing": (
        "import os, subprocess\nprint('at import')\nos.write(1, b'raw')\n"
        "@hookimpl\ndef sane_open(source):\n    print('open')\n    subprocess.run(['echo', 'out'])\n"
        "    raise OSError('loud')",
        "OSError: loud",
    ),
}

NOTED: dict[str, tuple[str, str]] = {
    "misspelt": ("@hookimpl\ndef sane_opne(source): ...", "did you mean sane_open?"),
    "unmarked": ("def sane_open(source): ...", "sane_open is not marked with hookimpl"),
    "without_hooks": ("x = 3", "it implements no hook"),
}


def install_plugin(
    folder: Path, name: str, code: str, *, points: str = "", metadata: bool = True
) -> None:
    """Lay a distribution `NAME-dist` with one module as pip lays it, into a folder for the path."""
    (folder / f"{name}.py").write_text(HEADER + dedent(code))
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(
        (points or f"[sane_plugins]\n{name} = {name}\n").encode()
    )
