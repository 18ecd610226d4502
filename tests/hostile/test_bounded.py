"""The measure of all other tests here: limits that hold, sentences told apart from tracebacks."""

import pytest
from hostile.bounded import run, run_python


def test_time_and_memory_are_measured():
    take = "x = bytearray(600 << 20); x[::4096] = x[::4096]"
    wait = "while __import__('time').process_time() < 1.2: pass"
    hungry = run_python("-c", f"{take}\n{wait}")
    assert hungry.seconds > 1
    assert hungry.gibibytes > 0.55
    with pytest.raises(AssertionError, match="GiB"):
        hungry.require_small(gibibytes=0.5)
    with pytest.raises(AssertionError, match=" s"):
        hungry.require_small(seconds=1.0)


def test_a_sentence_is_no_traceback(tmp_path):
    assert (
        "nowhere.pt" in run("inspect", tmp_path / "nowhere.pt").require_small().require_sentence()
    )
    with pytest.raises(AssertionError, match="Traceback"):
        run("inspect", tmp_path / "nowhere.pt", "--debug").require_sentence()
