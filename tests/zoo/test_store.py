"""Zoos: nothing is lost on import, and splits are by network."""

import pytest
import torch

from sane_plugins.architectures import small_cnn
from sane_plugins.errors import UsageError, ZooError
from sane_plugins.zoo import Entry, Zoo, evaluation_pool, import_published, write_zoo

FACTORY = {"name": "small_cnn", "channels_in": 1, "classes": 10, "act": "relu", "dropout": 0.0}


@pytest.fixture
def made_zoo(tmp_path) -> Zoo:
    """Write a zoo of six random networks with two checkpoints each."""
    torch.manual_seed(0)
    items = [
        (
            Entry(
                network=str(n), checkpoint=str(c), factory=FACTORY, properties={"epoch": float(c)}
            ),
            small_cnn().state_dict(),
        )
        for n in range(6)
        for c in range(2)
    ]
    return write_zoo(tmp_path / "zoo", "made", items)


def test_written_zoo_reads_back(made_zoo: Zoo) -> None:
    again = Zoo.open(made_zoo.weights.parent)
    assert again == made_zoo
    entry = again.entries[3]
    module, graph = again.module(entry), again.graph(entry)
    for key, value in module.state_dict().items():
        assert torch.equal(value, graph.tensors[key])


@pytest.mark.parametrize("kept", [True, False], ids=["stays mapped", "mapped anew"])
def test_tensors_are_the_callers(made_zoo: Zoo, kept: bool, monkeypatch) -> None:
    if not kept:
        monkeypatch.setattr("sane_plugins.zoo.shards._MOST_KEPT", 0)
    entry, written = made_zoo.entries[2], made_zoo.weights.read_bytes()
    before = {key: value.clone() for key, value in made_zoo.state_dict(entry).items()}
    for value in (*made_zoo.state_dict(entry).values(), *made_zoo.graph(entry).tensors.values()):
        value.zero_()
    for key, value in made_zoo.state_dict(entry).items():
        assert torch.equal(value, before[key])
    assert made_zoo.weights.read_bytes() == written


def test_zoo_is_not_overwritten(made_zoo: Zoo) -> None:
    before = made_zoo.weights.read_bytes()
    with pytest.raises(UsageError, match="--force"):
        write_zoo(made_zoo.weights.parent, "other", [])
    assert made_zoo.weights.read_bytes() == before


def test_a_replaced_zoo_is_read_anew(made_zoo: Zoo) -> None:
    entry = made_zoo.entries[0]
    before = made_zoo.state_dict(entry)
    again = write_zoo(made_zoo.folder, "made", [(entry, small_cnn().state_dict())], force=True)
    assert not torch.equal(again.state_dict(again.entries[0])["0.weight"], before["0.weight"])
    assert len(list(made_zoo.folder.iterdir())) == 2


@pytest.mark.parametrize("index", ["{}", "[]", '{"version": 9}', '{"version": 1, "entries": [{}]}'])
def test_a_wrong_index_is_one_sentence(tmp_path, index: str) -> None:
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(ZooError, match="zoo import"):
        Zoo.open(tmp_path)


def test_missing_index_is_one_sentence(tmp_path) -> None:
    with pytest.raises(ZooError, match="zoo import"):
        Zoo.open(tmp_path)


def test_splits_are_by_network_and_complete(made_zoo: Zoo) -> None:
    parts = made_zoo.split((0.5, 0.25, 0.25), torch.Generator().manual_seed(1))
    networks = [set(part.networks) for part in parts]
    assert sum(map(len, networks)) == 6
    assert set.union(*networks) == set(made_zoo.networks)
    assert evaluation_pool(made_zoo) == evaluation_pool(made_zoo)


@pytest.mark.parametrize("name", ["mnist-cnn", "cifar10-cnn"])
def test_published_zoo_measures_as_recorded(sane_data, name: str) -> None:
    zoo = import_published(sane_data / "zoos" / f"{name}.json")
    assert len({entry.key for entry in zoo.entries}) == len(zoo)
    entry = zoo.best("test_accuracy", 1).entries[0]
    from sane_plugins.tasks import accuracy, load_task

    task = load_task(sane_data / "datasets" / f"{name.removesuffix('-cnn')}.npz")
    measured = accuracy(zoo.module(entry), task.x_test[:1000], task.y_test[:1000])
    assert measured == pytest.approx(float(entry.properties["test_accuracy"]), abs=0.05)


def test_best_counts_each_network_once(sane_data) -> None:
    zoo = import_published(sane_data / "zoos" / "mnist-cnn.json")
    best = zoo.best("test_accuracy", 10)
    assert len(set(best.networks)) == len(best) == 10
    least = min(float(entry.properties["test_accuracy"]) for entry in best.entries)
    others = zoo.where(lambda entry: entry.network not in best.networks)
    assert least >= max(float(entry.properties["test_accuracy"]) for entry in others.entries)
