"""What every command shares: errors as one sentence, JSON on request, progress on stderr."""

from __future__ import annotations

import functools
import json
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import click

from sane_plugins import hookimpl
from sane_plugins.cli.results import (
    claim_standard_output,
    release_standard_output,
    result_stream,
)
from sane_plugins.errors import SaneError, visible

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from sane_plugins.architectures import Trust
    from sane_plugins.host import Host
    from sane_plugins.progress import Progress

P = ParamSpec("P")
INTERRUPTED = 130
_TOLD_PROBLEMS = 3  # of one plugin
_MOST_OF_A_LINE = 4_000  # characters; the four facts of an error are all shown
_MOST_BESIDE_A_BAR = 100
_SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal to draw bars on


class VisibleCommand(click.Command):
    """A command whose help and whose usage errors, which repeat what was typed, are `visible`."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line."""
        with _visible_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, or parse the command line of a subcommand and run that."""
        with _visible_usage_errors():
            return super().invoke(ctx)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help; a group's names the commands of plugins."""
        return "\n".join(visible(line) for line in super().get_help(ctx).split("\n"))


@contextmanager
def _visible_usage_errors() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = visible(error.message)  # set before: click calls it final
        raise


def command_options(function: Callable[P, None]) -> Callable[..., None]:
    """Add --json and --debug, and turn exceptions into one sentence and an exit code."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("--debug", is_flag=True, help="Show a traceback where something fails.")
    @functools.wraps(function)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        with report_errors(debug):
            function(*args, **kwargs)

    return run


@contextmanager
def report_errors(debug: bool) -> Iterator[None]:
    """Turn an exception in the block into one sentence on stderr and an exit code."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise  # click reports these itself, and after a broken pipe nobody reads on
    except KeyboardInterrupt:
        _exit_with("Interrupted.", INTERRUPTED)
    except SaneError as error:
        if debug:
            raise
        _exit_with(f"Error: {error}", error.exit_code)
    except Exception as error:
        if debug:
            raise
        first_line = str(error).strip().partition("\n")[0]
        _exit_with(
            f"Error: unexpected {type(error).__name__}: {first_line}; run again with --debug.", 1
        )


def note(text: str) -> None:
    """Print a message to stderr, apart from the result; as one line, `visible`."""
    _write(visible(text, _MOST_OF_A_LINE), err=True)


def print_line(text: str) -> None:
    """Print a line of the result, `visible`."""
    _write(visible(text, _MOST_OF_A_LINE))


def print_lines(lines: Iterable[str]) -> None:
    """Print the result as lines for programs, as they are."""
    _write("\n".join(lines))


def print_json(data: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print the result as JSON in ASCII; paths and other objects become text, NaN and infinity null."""
    _write(json.dumps(_to_plain(data), indent=2, default=str, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, every cell `visible`; numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # a name with brackets is no markup

    table = Table(title=Text(visible(title)), title_justify="left")
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(Text(visible(column)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(str(cell))) for cell in row))
    # Piped output is read by programs and logs: it must not be cut at a guessed width.
    stream = result_stream()
    console = Console(file=stream, width=None if stream.isatty() else 120)
    with console.capture() as drawn:
        console.print(table)
    _write(drawn.get().removesuffix("\n"))


def _write(text: str, err: bool = False) -> None:
    """Print text; everything that a command prints passes here, and what the encoding lacks is escaped."""
    stream = sys.stderr if err else result_stream()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _to_plain(data: Any) -> Any:
    """Return data that JSON can hold: numbers of NumPy as numbers, NaN and infinity as None."""
    if isinstance(data, Mapping):
        return {key: _to_plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_to_plain(value) for value in data]
    number = data.item() if getattr(data, "ndim", None) == 0 else data
    return None if isinstance(number, float) and not math.isfinite(number) else number


class _ProgressBars:
    """Draws one bar per job, as an ordinary plugin that observes progress."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task_ids: dict[str, TaskID] = {}

    @hookimpl
    def sane_progress(self, event: Progress) -> None:
        """Move the bar of the event's job; print what is announced above the bars."""
        if event.is_announcement:
            note(f"{event.job}.")
            return
        if event.job not in self._task_ids:
            self._task_ids[event.job] = self._bars.add_task("", total=event.total)
        description = visible(f"{event.job} {event.note}".strip(), _MOST_BESIDE_A_BAR)
        self._bars.update(
            self._task_ids[event.job],
            completed=event.done,
            total=event.total,
            description=description,
        )


class _ProgressLines:
    """Says every ten seconds how far the latest job is, where there is no terminal, from a thread."""

    def __init__(self) -> None:
        self._started, self._latest = monotonic(), "at work"
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._say_at_times, daemon=True)

    def __enter__(self) -> _ProgressLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @hookimpl
    def sane_progress(self, event: Progress) -> None:
        """Remember the event; say at once what is announced."""
        if event.is_announcement:
            note(f"{event.job}.")
        else:
            told = f"{event.job}, {event.done} of {event.total} {event.note}".strip()
            self._latest = visible(told, _MOST_BESIDE_A_BAR)

    def _say_at_times(self) -> None:
        while not self._is_over.wait(_SECONDS_BETWEEN_LINES):
            note(f"{monotonic() - self._started:.0f} s: {self._latest}")


@contextmanager
def progress_bars(host: Host) -> Iterator[None]:
    """Draw a bar per job on stderr within the block; without a terminal, print a line every ten seconds."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        with _ProgressLines() as lines, _registered(host, lines):
            yield
        return
    description = TextColumn("{task.description}", markup=False)  # names have brackets
    columns = (description, *Bars.get_default_columns()[1:])
    bars = Bars(*columns, console=console, transient=True)
    with bars, _registered(host, _ProgressBars(bars)):
        yield


@contextmanager
def _registered(host: Host, observer: object) -> Iterator[None]:
    host.pm.register(observer)
    try:
        yield
    finally:
        host.pm.unregister(observer)


def open_host(trust: Trust | None = None) -> Host:
    """Load the installed plugins; print their failures to stderr, now and when the command ends.

    `trust` says which functions may build networks by name: by default all, as the user types the names.
    """
    from sane_plugins.cli.options.trust import typed_trust
    from sane_plugins.host import Host

    context = click.get_current_context(silent=True)
    if context is not None:
        claim_standard_output()
        context.call_on_close(release_standard_output)
    host = Host.installed()
    host.trust = trust or typed_trust((), everything=True)
    told = tell_of_plugins(host, {x.plugin for x in host.problems})
    if context is not None:
        context.call_on_close(lambda: tell_of_plugins(host, _plugins_to_tell_of(host) - told))
    return host


def tell_of_plugins(host: Host, plugins: Set[str]) -> Set[str]:
    """Print one line for each of these plugins: what was left out, notes for its author, the way out."""
    for plugin in sorted(plugins):
        problems = [x for x in host.problems if x.plugin == plugin]
        texts = [
            f"{x.place} is left out: {x.error}" if x.place else f"it is left out: {x.error}"
            for x in problems[:_TOLD_PROBLEMS]
        ]
        if len(problems) > len(texts):
            texts.append(f"and {len(problems) - len(texts)} more")
        texts += [x.text for x in host.notes if x.plugin == plugin]
        if line := host.way_without(plugin):
            texts = [*(x.rstrip(".") for x in texts), f"to go without it, run '{line}'"]
        note(f"Note: plugin {plugin}: {'; '.join(texts)}")
    return plugins


def _plugins_to_tell_of(host: Host) -> Set[str]:
    return {x.plugin for x in host.problems} | {x.plugin for x in host.notes}


def _is_number(cell: object) -> bool:
    text = str(cell).strip("%-+ ")
    return not text or text.replace(".", "", 1).replace(",", "").isdigit()


def _exit_with(message: str, code: int) -> None:
    note(message)
    raise SystemExit(code)
