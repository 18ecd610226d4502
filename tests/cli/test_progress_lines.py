"""Without a terminal a long job says from time to time how far it is, and at once what it will do."""

import time

import click
from click.testing import CliRunner

from sane_plugins.cli import console
from sane_plugins.host import Host
from sane_plugins.progress import Progress


def test_a_line_from_time_to_time_says_how_far_the_latest_job_is(monkeypatch) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.05)
    host, said, note = Host.installed(), [], console.note
    monkeypatch.setattr(console, "note", lambda text: (said.append(text), note(text)))

    def wait_for_lines(count: int) -> None:
        while len(said) < count:
            time.sleep(0.01)

    @click.command()
    def work() -> None:
        with console.progress_bars(host):
            host.report(Progress(job="will train 4 candidates", done=0, total=0))
            host.report(Progress(job="train", done=2, total=8, note="default 0.5"))
            wait_for_lines(len(said) + 2)  # the first of them may have been under way

    done = CliRunner().invoke(work)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert "will train 4 candidates." in lines
    assert "s: train, 2 of 8 default 0.5" in lines[-1]
    assert not done.stdout


def test_a_short_job_says_nothing(monkeypatch) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 60.0)
    host = Host.installed()

    @click.command()
    def work() -> None:
        with console.progress_bars(host):
            host.report(Progress(job="train", done=1, total=1))

    assert not CliRunner().invoke(work).stderr
