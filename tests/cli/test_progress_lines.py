"""Without a terminal a long job says from time to time how far it is, and at once what it will do."""

import time

import click
from click.testing import CliRunner

from sane_plugins.cli import console
from sane_plugins.host import Host
from sane_plugins.progress import Progress


def test_a_line_from_time_to_time_says_how_far_the_latest_job_is(monkeypatch) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.05)
    host = Host.installed()

    @click.command()
    def work() -> None:
        with console.progress_bars(host):
            host.report(Progress(job="will train 4 candidates", done=0, total=0))
            host.report(Progress(job="train", done=2, total=8, note="default 0.5"))
            time.sleep(0.3)

    done = CliRunner().invoke(work)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert lines[0] == "will train 4 candidates."
    assert "s: train, 2 of 8 default 0.5" in lines[1]
    assert len(lines) >= 3
    assert not done.stdout


def test_a_short_job_says_nothing(monkeypatch) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 60.0)
    host = Host.installed()

    @click.command()
    def work() -> None:
        with console.progress_bars(host):
            host.report(Progress(job="train", done=1, total=1))

    assert not CliRunner().invoke(work).stderr
