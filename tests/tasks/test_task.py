"""Tasks: what is read is what was given, standardised; what cannot be used is said in one sentence."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sane_plugins.errors import TaskError, UsageError
from sane_plugins.tasks import load_task, require_fit

RNG = np.random.default_rng(0)


def arrays(count: int = 40, shape: tuple[int, ...] = (6, 5), classes: int = 4) -> dict:
    return {
        "x_train": RNG.integers(0, 255, (count, *shape), dtype=np.uint8),
        "y_train": np.arange(count) % classes,
        "x_test": RNG.integers(0, 255, (classes * 2, *shape), dtype=np.uint8),
        "y_test": np.arange(classes * 2) % classes,
    }


@pytest.fixture
def save(tmp_path):
    def write(**changed):
        given = {key: value for key, value in {**arrays(), **changed}.items() if value is not None}
        path = tmp_path / "task.npz"
        np.savez(path, **given)
        return path

    return write


@pytest.fixture
def folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(5):
            pixels = RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def test_digits_are_standardised_and_split_the_same_way_always() -> None:
    task, again = load_task("digits"), load_task("digits")
    assert task.x_train.shape[1:] == (1, 8, 8)
    assert len(task.y_train) + len(task.y_test) == 1797
    assert len(task.classes) == 10
    assert task.x_train.mean().abs() < 1e-5
    assert task.x_train.std() == pytest.approx(1, abs=1e-3)
    assert torch.equal(task.x_test, again.x_test)
    share = torch.bincount(task.y_test) / (
        torch.bincount(task.y_test) + torch.bincount(task.y_train)
    )
    assert (share - 0.2).abs().max() < 0.01


def test_npz_is_what_was_saved(save) -> None:
    given = arrays()
    task = load_task(save(**given))
    x = torch.from_numpy(given["x_train"]).float()
    assert torch.allclose(task.x_train[:, 0], (x - x.mean()) / x.std(correction=0), atol=1e-5)
    assert torch.equal(task.y_test, torch.from_numpy(given["y_test"]))
    assert task.size == (6, 5)


def test_scale_and_layout_of_pixels_do_not_matter(save) -> None:
    given = arrays(shape=(6, 5, 3))
    whole = load_task(save(**given))
    part = {key: (given[key] / 255).astype(np.float32) for key in ("x_train", "x_test")}
    share = load_task(save(**{**given, **part}))
    first = {key: np.moveaxis(given[key], 3, 1) for key in ("x_train", "x_test")}
    assert whole.channels == 3
    assert torch.allclose(whole.x_test, share.x_test, atol=1e-5)
    assert torch.equal(whole.x_test, load_task(save(**{**given, **first})).x_test)


def test_labels_as_a_column_and_no_test_images(save) -> None:
    task = load_task(save(y_train=(np.arange(40) % 4)[:, None], x_test=None, y_test=None))
    assert sorted(torch.bincount(task.y_test).tolist()) == [2, 2, 2, 2]
    assert len(task.y_train) == 32


def test_folder_names_its_classes(folder) -> None:
    task = load_task(folder)
    assert task.classes == ("cat", "dog")
    assert task.x_train.shape == (8, 3, 6, 8)
    assert load_task(folder, size=12).size == (12, 12)


def test_resizing_keeps_images_standardised(save) -> None:
    task = load_task(save()).resized(9)
    assert task.size == (9, 9)
    assert task.x_train.mean().abs() < 1e-5
    assert task.x_train.std(correction=0) == pytest.approx(1, abs=1e-4)


def test_pixels_of_as_many_channels_as_the_images_have() -> None:
    task = load_task("digits")
    assert task.repeated(3).resized(16).pixel_mean == pytest.approx(task.resized(16).pixel_mean * 3)
    with pytest.raises(TaskError, match="it has 1 numbers, but images of 3 channels"):
        replace(task, x_train=task.x_train.expand(-1, 3, -1, -1))


def test_held_out_images_are_training_images(save) -> None:
    task = load_task(save())
    part = task.held_out(0.25, torch.Generator().manual_seed(3))
    both = torch.cat([part.x_train, part.x_test]).flatten(1)
    assert sorted(both.sum(1).tolist()) == sorted(task.x_train.flatten(1).sum(1).tolist())
    assert torch.bincount(part.y_test).tolist() == [2, 2, 2, 2]
    assert len(task.subset(7, torch.Generator().manual_seed(3)).y_train) == 7


NAN = np.full((40, 6, 5), 0.5, dtype=np.float32)
NAN[3, 2, 1] = np.nan
BAD = {
    "missing labels": ({"y_train": None}, "y_train"),
    "labels without images": ({"x_test": None}, "alone"),
    "lengths differ": ({"y_train": np.arange(39) % 4}, "39 labels"),
    "float labels": ({"y_train": np.arange(40) / 10}, "whole numbers"),
    "negative labels": ({"y_train": np.arange(40) % 4 - 1}, "numbered 0 to 3"),
    "labels with gaps": ({"y_train": np.arange(40) % 4 * 2}, "0, 2, 4, 6"),
    "unknown test labels": ({"y_test": np.arange(8)}, "4, 5, 6, 7"),
    "one class": ({"y_train": np.zeros(40, int), "y_test": np.zeros(8, int)}, "single class"),
    "NaN": ({"x_train": NAN}, "1 of 40 images"),
    "flat images": ({"x_train": np.zeros((40, 30))}, "shape"),
    "seven channels": ({"x_train": np.zeros((40, 7, 6, 7))}, "1 to 4 channels"),
    "other size": ({"x_test": np.zeros((8, 9, 9), np.uint8)}, "those of x_train"),
    "objects": ({"x_train": np.array([None] * 40)}, "plain arrays"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_one_sentence(save, name: str) -> None:
    changed, told = BAD[name]
    with pytest.raises(TaskError, match=told) as caught:
        load_task(save(**changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 cut", b""])
def test_other_files_are_no_tasks(tmp_path, content: bytes) -> None:
    path = tmp_path / "task.npz"
    path.write_bytes(content)
    with pytest.raises(TaskError, match="savez"):
        load_task(path)


def test_truncated_file_is_one_sentence(save) -> None:
    path = save()
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(TaskError, match="savez"):
        load_task(path)


def test_missing_file_and_empty_folder(tmp_path) -> None:
    with pytest.raises(TaskError, match="no such file"):
        load_task(tmp_path / "none.npz")
    with pytest.raises(TaskError, match="sub-folder"):
        load_task(tmp_path)
    with pytest.raises(UsageError, match="at least 1"):
        load_task("digits", size=0)


def test_images_of_another_size_are_named(folder) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (20, 10)).save(folder / "dog" / "wide.png")
    with pytest.raises(TaskError, match=r"wide.png: its size is 20 x 10.*--size"):
        load_task(folder)
    assert load_task(folder, size=8).size == (8, 8)


def test_unreadable_image_is_named(folder) -> None:
    (folder / "cat" / "note.txt").write_text("no image")
    with pytest.raises(TaskError, match=r"note.txt: it cannot be read as an image"):
        load_task(folder)


def test_empty_class_is_named(folder) -> None:
    (folder / "eel").mkdir()
    with pytest.raises(TaskError, match="'eel' holds no files"):
        load_task(folder)


def test_without_pillow_the_way_out_is_told(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(TaskError, match=r"sane-plugins\[images\]"):
        load_task(folder)


def test_network_must_take_images_and_classes() -> None:
    task = load_task("digits")
    require_fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), task)
    with pytest.raises(TaskError, match=r"1 x 8 x 8.*--size"):
        require_fit(nn.Conv2d(1, 10, 9), task)
    with pytest.raises(TaskError, match="10 classes"):
        require_fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), task)


@pytest.mark.parametrize(
    "name", ["animal_mnist", "cifar10", "fashion_mnist", "mnist", "pneumoniamnist_subset", "usps"]
)
def test_shared_data_sets_are_read(sane_data, name: str) -> None:
    task = load_task(sane_data / "datasets" / f"{name}.npz")
    assert task.x_train.isfinite().all()
    assert int(task.y_train.max()) + 1 == len(task.classes)
