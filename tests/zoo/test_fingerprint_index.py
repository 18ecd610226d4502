"""The index of a zoo: made once, found again, and no longer believed where networks changed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sane_plugins.zoo import Entry, Zoo, index_zoo, write_zoo


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).state_dict()


def entry(name: str, **properties) -> Entry:
    return Entry(network=name, checkpoint="1", factory={}, properties=properties)


def made(folder: Path, seeds: dict[str, int], force: bool = False) -> Zoo:
    return write_zoo(folder, "z", ((entry(n), state(s)) for n, s in seeds.items()), force)


def names(indexed) -> set[str]:
    return {name for packed in indexed.fingerprints for name in packed.names}


def test_networks_are_read_once(tmp_path):
    zoo = made(tmp_path / "zoo", {"a": 0, "b": 1, "copy": 0})
    first = index_zoo(zoo)
    assert (first.added, names(first)) == (2, {"a/1", "b/1", "copy/1"}), "a copy is read once"
    again = index_zoo(Zoo.open(zoo.folder))
    assert (again.added, names(again)) == (0, names(first))


def test_what_changed_is_read_anew_and_what_is_gone_is_left_out(tmp_path):
    index_zoo(made(tmp_path / "zoo", {"a": 0, "b": 1}))
    indexed = index_zoo(made(tmp_path / "zoo", {"a": 2, "c": 1}, force=True))
    assert (indexed.added, indexed.stale, names(indexed)) == (1, 1, {"a/1", "c/1"})
    assert index_zoo(Zoo.open(tmp_path / "zoo")).added == 0


def test_a_stopped_run_goes_on(tmp_path):
    zoo = made(tmp_path / "zoo", {str(i): i for i in range(5)})

    def stop(event):
        if event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_zoo(zoo, stop, seconds=0.0)
    assert index_zoo(zoo).added == 3, "two were kept"
    assert len([*zoo.folder.glob("fingerprints-*")]) == 1


def test_a_damaged_index_is_made_anew(tmp_path):
    zoo = made(tmp_path / "zoo", {"a": 0})
    index_zoo(zoo)
    (path,) = zoo.folder.glob("fingerprints-*")
    path.write_bytes(path.read_bytes()[:-7])
    indexed = index_zoo(zoo)
    assert indexed.added == 1 and path.name in indexed.notes[0]
    assert index_zoo(zoo).added == 0


def test_a_network_that_is_not_finite_is_skipped_with_the_reason(tmp_path):
    broken = {key: x * float("nan") for key, x in state(3).items()}
    zoo = write_zoo(tmp_path / "zoo", "z", [(entry("a"), state(0)), (entry("b"), broken)])
    for _ in range(2):
        indexed = index_zoo(zoo)
        assert names(indexed) == {"a/1"}
        assert "not finite" in indexed.skipped["b/1"]
