"""Engines: every task is done once, whatever happens to the processes that do it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from enginework import Start, inline, workers_of

from sane_plugins.engines import (
    Done,
    LocalEngine,
    Lost,
    local_engine,
    run_in_order,
    run_with_retries,
)
from sane_plugins.errors import PluginError, UsageError

TESTS = Path(__file__).parents[1]
LOCAL = LocalEngine()


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition) -> None:
    while not condition():  # the time limit of a test ends what never comes
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_tasks_are_done_and_come_in_their_order(workers, capfd) -> None:
    tasks = [("square", i) for i in range(30)]
    assert [*run_in_order(LOCAL, Start(), tasks, workers)] == [i * i for i in range(30)]
    out, err = capfd.readouterr()
    assert out == ""  # what libraries print is no answer, and no result of ours
    assert "libraries print" in err
    assert not workers_of(os.getpid())


def test_work_is_spread_and_a_worker_is_used_again() -> None:
    pids = [x.result for x in run_with_retries(LOCAL, Start(), [("pid", 0)] * 20, 2)]
    assert 1 <= len({*pids}) <= 2
    assert os.getpid() not in pids


def test_no_task_needs_no_worker() -> None:
    assert [*run_with_retries(LOCAL, Start(), [], 2)] == []


def test_a_task_that_ends_its_worker_is_lost_and_the_others_are_done(tmp_path) -> None:
    tasks = [("square", 2), ("die", 0), ("die once", str(tmp_path / "died")), ("square", 3)]
    outcomes = {x.index: x for x in run_with_retries(LOCAL, Start(), tasks, 2)}
    assert outcomes == {0: Done(0, 4), 1: Lost(1), 2: Done(2, "die once"), 3: Done(3, 9)}


def test_workers_killed_in_ten_places_lose_no_task() -> None:
    done, kills = set(), 0
    for outcome in run_with_retries(LOCAL, Start(), [("pid", i) for i in range(400)], 2):
        assert outcome.index not in done
        done.add(outcome.index)
        # One that has begun: where none can start, the run ends.
        if len(done) % 36 == 0 and kills < 10 and outcome.result in workers_of(os.getpid()):
            os.kill(outcome.result, signal.SIGKILL)
            kills += 1
    assert kills >= 5  # some may have ended by then
    assert done == {*range(400)}


def test_memory_that_runs_out_is_told_apart() -> None:
    tasks = [("no memory", 0), ("square", 5)]
    outcomes = {x.index: x for x in run_with_retries(LOCAL, Start(), tasks, 2)}
    assert outcomes == {0: Lost(0, out_of_memory=True), 1: Done(1, 25)}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_worker_cannot_take_the_memory_of_the_machine(monkeypatch) -> None:
    monkeypatch.setattr(local_engine, "share_of_memory", lambda workers: 2**30 // workers)
    tasks = [("allocate", 2**31), ("allocate", 3 * 2**28), ("allocate", 2**20)]
    outcomes = {x.index: x for x in run_with_retries(LOCAL, Start(), tasks, 2)}
    assert outcomes[0] == Lost(0, out_of_memory=True)
    assert outcomes[1] == Done(1, 3 * 2**28)  # more than half: at last alone
    assert outcomes[2] == Done(2, 2**20)


def test_an_error_of_the_work_ends_the_run_and_every_worker() -> None:
    tasks = [("fail", "oops"), *[("square", i) for i in range(50)]]
    with pytest.raises(PluginError, match="KeyError"):
        [*run_with_retries(LOCAL, Start(), tasks, 2)]
    assert not workers_of(os.getpid())


def test_an_error_at_the_start_is_raised_as_it_is() -> None:
    with pytest.raises(UsageError, match="a start: it is wrong"):
        [*run_with_retries(LOCAL, Start(fails=True), [("square", 1)], 1)]


def test_closing_ends_workers_that_are_at_work(tmp_path) -> None:
    running = run_with_retries(LOCAL, Start(), [("square", 1), ("sleep", str(tmp_path / "x"))], 2)
    assert next(running) == Done(0, 1)
    wait_for((tmp_path / "x").exists)
    running.close()
    assert not workers_of(os.getpid())


@pytest.mark.parametrize("answers", [[], [Done(0, 1), Done(0, 1)], [5], [Done(7, 1)]])
def test_an_engine_of_a_plugin_is_held_to_its_word(answers) -> None:
    def engine(*_):
        return iter(answers)

    with pytest.raises(PluginError, match="the engine"):
        [*run_with_retries(engine, Start(), [("square", 1)], 1)]


def test_an_engine_may_be_a_generator() -> None:
    assert [*run_in_order(inline, Start(), [("square", 4)], 1)] == [16]


def program(folder: Path, body: str) -> subprocess.Popen:
    """Start a program that has no main guard, from another folder."""
    path = folder / "host_program.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n" + textwrap.dedent(body))
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "sane_plugins.py").write_text("raise SystemExit('the wrong one')")
    command = [sys.executable, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder / "elsewhere")


def test_a_program_without_main_guard_may_run_one_from_a_thread(tmp_path) -> None:
    body = """
        import threading
        from enginework import Start
        from sane_plugins.engines import LocalEngine, run_in_order

        def run():
            print(*run_in_order(LocalEngine(), Start(), [("square", 3), ("square", 4)], 2))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    """
    with program(tmp_path, body) as host:
        assert host.communicate()[0] == "9 16\n"
    assert host.returncode == 0


def test_workers_end_with_a_program_that_is_killed(tmp_path) -> None:
    body = f"""
        from enginework import Start
        from sane_plugins.engines import LocalEngine, run_in_order
        tasks = [("sleep", {str(tmp_path / "a")!r}), ("sleep", {str(tmp_path / "b")!r})]
        print(*run_in_order(LocalEngine(), Start(), tasks, 2))
    """
    with program(tmp_path, body) as host:
        try:
            wait_for(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
            workers = workers_of(host.pid)
            assert len(workers) == 2
        finally:
            host.kill()
        wait_for(lambda: not any(map(is_alive, workers)))


def test_runs_in_threads_keep_apart() -> None:
    results: dict[int, list[int]] = {}

    def run(number: int) -> None:
        tasks = [("square", number + i) for i in range(5)]
        results[number] = [*run_in_order(LOCAL, Start(), tasks, 1)]

    threads = [threading.Thread(target=run, args=(10 * i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {10 * i: [(10 * i + j) ** 2 for j in range(5)] for i in range(3)}
