"""Runs whose workers, or whose main process, are killed: the results are those of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from enginework import workers_of
from runfolders import inline_host, make_networks, rows_of, shards_of

from sane_plugins.folder_runs import EmbedJob, RunOptions, run_job
from sane_plugins.progress import Progress

COUNT, ROWS = 120, 10
LOCAL = RunOptions(workers=2, rows_per_shard=ROWS)
_KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """Return a folder of networks, and what a run in one process writes of them."""
    folder = tmp_path_factory.mktemp("killed")
    networks = make_networks(folder / "zoo", COUNT)
    options = RunOptions(engine="inline", rows_per_shard=ROWS)
    run_job(inline_host(), networks, folder / "out", EmbedJob(), options)
    return networks, shards_of(folder / "out")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it finds workers in /proc")
def test_workers_killed_in_ten_places_change_nothing(undisturbed, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sane_plugins.engines.local_engine._STARTS", 20)  # some die as they start
    networks, expected = undisturbed
    host, moments, kills = inline_host(), random.Random(0), []

    def kill_in_places(event: Progress) -> None:
        """Kill a worker while the run waits for this: it cannot end before, however busy the machine is."""
        is_due = event.done >= len(kills) * COUNT // (_KILLS + 2)
        if event.job == EmbedJob.name and is_due and len(kills) < _KILLS:
            time.sleep(moments.uniform(0, 0.2))
            for pid in workers_of(os.getpid())[:1]:
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)

    host.report = kill_in_places
    result = run_job(host, networks, tmp_path / "out", EmbedJob(), LOCAL)
    assert len(kills) == _KILLS
    assert (result.networks, result.errors) == (COUNT, 0)
    assert shards_of(tmp_path / "out") == expected


# A shell may have interrupts ignored.
_PROGRAM = """import signal
from sane_plugins.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()"""
# Waits after a shard, so that it is ended there however busy the machine is.
_WAITING = """import importlib, time
module = importlib.import_module("sane_plugins.folder_runs.run_job")
write_shard, names = module.write_shard, []
def write_and_wait(folder, shard, *more):
    write_shard(folder, shard, *more)
    names.append(shard)
    if len(names) == 3:
        time.sleep(600)
module.write_shard = write_and_wait
"""


def command(networks: Path, out: Path, program: str = _PROGRAM) -> subprocess.Popen:
    arguments = ["run", "embed", str(networks), "-o", str(out), "--workers", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments, "--shard-rows", str(ROWS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_ended_goes_on(undisturbed, tmp_path, number) -> None:
    networks, expected = undisturbed
    out = tmp_path / "out"
    with command(networks, out, _WAITING + _PROGRAM) as run:
        while run.poll() is None and len([*out.glob("part-*")]) < 3:
            time.sleep(0.01)
        run.send_signal(number)
        told = run.communicate()[1]
    if number == signal.SIGINT:
        assert run.returncode == 130
        assert told.splitlines()[-2:] == [
            f"Whole shards are kept in {out}: the same command goes on from there.",
            "Interrupted.",
        ]
    kept = shards_of(out)
    assert len([x for x in kept if x.startswith("part")]) == 3
    assert kept.items() <= expected.items()
    with command(networks, out) as again:
        told = again.communicate()[1]
    assert again.returncode == 0
    assert shards_of(out) == expected
    assert f"{COUNT} networks" in told
    assert f" {COUNT} were computed" not in told
    assert not [*out.glob(".sane-plugins-*")]


@pytest.mark.slow
def test_a_file_that_ends_every_worker_has_an_error(tmp_path, monkeypatch) -> None:
    """A plugin that reads a form of its own ends the process at one file."""
    networks = make_networks(tmp_path / "zoo", 3)
    (networks / "deadly.pt").write_bytes(b"DEADLY")
    plugin = tmp_path / "plugins"
    (plugin / "deadly-1.0.dist-info").mkdir(parents=True)
    (plugin / "deadly.py").write_text(
        "import os\nfrom pathlib import Path\nfrom sane_plugins import hookimpl\n\n@hookimpl\n"
        "def sane_open(source):\n"
        "    if 'deadly' in str(source):\n"
        "        os.abort()\n"
    )
    info = plugin / "deadly-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sane_plugins]\ndeadly = deadly\n")
    monkeypatch.syspath_prepend(str(plugin))
    host = inline_host()
    host.pm.unregister(name="deadly")  # it would end this process too
    result = run_job(host, networks, tmp_path / "out", EmbedJob(), LOCAL)
    rows = rows_of(tmp_path / "out")
    assert result.errors == 1
    assert "its worker ended 3 times" in rows.pop("deadly.pt")["error"]
    assert not [row for row in rows.values() if row["error"]]
