"""Folders of images as people have them: in sets, nested, with other files, with other classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sane_plugins.errors import TaskError, UsageError
from sane_plugins.initialize import InitializeOptions
from sane_plugins.initialize.problem import split_images
from sane_plugins.tasks import MixedSizesError, load_task

image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)


def fill(folder, count: int = 5, size: tuple[int, int] = (6, 8), start: int = 0) -> None:
    """Write images of colours at random, the first of which are alike in every call."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        pixels = RNG.integers(0, 255, (*size, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def sets(tmp_path):
    """Write train, val and test with three classes each."""
    for name, count in (("train", 6), ("val", 3), ("test", 2)):
        for c in ("dog", "ant", "Bee"):
            fill(tmp_path / "pets" / name / c, count)
    return tmp_path / "pets"


def _too_large(path, side: int = 9_000) -> None:
    """Write an image of more pixels than are read, in few bytes."""
    image.new("L", (side, side)).save(path)


def test_all_images_that_cannot_be_used_are_told_at_once(tmp_path) -> None:
    for name in ("ant", "bee"):
        fill(tmp_path / name, 6)
    whole = (tmp_path / "ant" / "0.png").read_bytes()
    (tmp_path / "ant" / "1.png").write_bytes(whole[: len(whole) // 2])  # found when it is decoded
    with pytest.raises(TaskError, match=r"ant/1.png: it cannot .*; remove or replace it\.$"):
        load_task(tmp_path)
    (tmp_path / "ant" / "3.png").write_text("no image")
    with pytest.raises(TaskError, match="2 of 12 images cannot be used") as caught:
        load_task(tmp_path)
    assert caught.value.place == str(tmp_path / "ant")
    for i in range(3):
        (tmp_path / "bee" / f"{i}.png").write_text("no image")
    for size in (None, 8):
        with pytest.raises(TaskError, match="5 of 12 images cannot be used: ") as caught:
            load_task(tmp_path, size)
        error = caught.value
        assert error.place == str(tmp_path)
        assert error.found.count(".png: it cannot be read as an image") == 3
        assert error.found.endswith(" and 2 more")
        assert error.way_out == "remove or replace them"


def test_what_is_too_large_is_to_be_made_smaller(tmp_path) -> None:
    for name in ("ant", "bee"):
        fill(tmp_path / name, 2)
    _too_large(tmp_path / "ant" / "0.png")
    with pytest.raises(TaskError, match=r"9000 x 9000 pixels .*; make it smaller, or remove it\.$"):
        load_task(tmp_path)
    _too_large(tmp_path / "bee" / "1.png", 19_000)  # Pillow's own limit
    with pytest.raises(TaskError, match=r"2 of 4 .*; make them smaller, or remove them\.$"):
        load_task(tmp_path, 16)
    (tmp_path / "bee" / "0.png").write_text("no image")
    with pytest.raises(TaskError, match=r"3 of 4 .*; make smaller what is too large, and remove"):
        load_task(tmp_path)


def test_errors_about_folders_speak_of_folders(tmp_path) -> None:
    fill(tmp_path / "ant", 3)
    told = "there is a single class, but a task needs two or more; add a sub-folder with images of"
    with pytest.raises(TaskError, match=told) as caught:
        load_task(tmp_path)
    assert caught.value.place == str(tmp_path)
    for name in ("train", "val"):
        fill(tmp_path / "sets" / name / "ant", 2)
    with pytest.raises(TaskError, match=told) as caught:
        load_task(tmp_path / "sets")
    assert caught.value.place == str(tmp_path / "sets" / "train")
    for name in ("ant", "bee"):
        fill(tmp_path / "few" / name, 1)
    with pytest.raises(TaskError, match="or folders 'train' and 'test' of them"):
        load_task(tmp_path / "few")
    for name in ("ant", "bee"):
        (tmp_path / "fine" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.full((4, 4), np.nan if i else 1.0, dtype=np.float32)
            image.fromarray(pixels).save(tmp_path / "fine" / name / f"{i}.tif")
    with pytest.raises(TaskError, match="images hold NaN") as caught:
        load_task(tmp_path / "fine")
    assert caught.value.place == str(tmp_path / "fine")


def test_sets_are_read_as_image_folders_are(sets) -> None:
    task = load_task(sets)
    assert task.classes == ("Bee", "ant", "dog")  # as torchvision's ImageFolder sorts them
    assert len(task.y_train) == 18
    assert torch.bincount(task.y_validation).tolist() == [3, 3, 3]
    assert torch.bincount(task.y_test).tolist() == [2, 2, 2]
    mean, deviation = (
        torch.tensor(x)[:, None, None] for x in (task.pixel_mean, task.pixel_deviation)
    )
    first = np.asarray(image.open(sets / "val" / "ant" / "0.png")).transpose(2, 0, 1) / 255
    assert np.allclose(task.x_validation[3] * deviation + mean, first, atol=1e-5)


def test_images_to_choose_by_are_test_images_where_there_are_no_others(sets) -> None:
    for folder in sorted((sets / "test").rglob("*"), reverse=True):
        folder.unlink() if folder.is_file() else folder.rmdir()
    (sets / "test").rmdir()
    task = load_task(sets).resized(12).to("cpu")
    assert task.x_test is task.x_validation
    chosen_by = task.with_validation_for_test(4, torch.Generator())
    assert len(chosen_by.y_test) == 4
    assert len(chosen_by.y_train) == 18
    few = task.at_most(7, torch.Generator())
    assert few.x_train.shape[0] == few.y_train.shape[0] == few.y_validation.shape[0] == 7
    held_out = task.held_out(0.5, torch.Generator())
    assert held_out.x_validation is None


@pytest.mark.parametrize(("train", "val"), [("Train", "valid"), ("training", "VALIDATION")])
def test_other_names_of_sets(tmp_path, train: str, val: str) -> None:
    for name in (train, val):
        for c in "ab":
            fill(tmp_path / "set" / name / c)
    assert len(load_task(tmp_path / "set").y_validation) == 10


def test_classes_may_be_called_like_sets(tmp_path) -> None:
    """Trains and tests are things that photographs show."""
    for c in ("train", "test"):
        fill(tmp_path / "a" / c)
    for c in ("train", "plane"):
        fill(tmp_path / "b" / c / "red")
    assert load_task(tmp_path / "a").classes == ("test", "train")
    assert load_task(tmp_path / "b").classes == ("plane", "train")


def test_other_folders_and_files_to_choose_by(tmp_path) -> None:
    x = RNG.integers(0, 255, (20, 6, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", x_train=x, y_train=np.arange(20) % 2)
    more = {"x_val": x[:4], "y_val": np.arange(4) % 2}
    np.savez(tmp_path / "val.npz", x_train=x, y_train=np.arange(20) % 2, **more)
    for c in ("ant", "bee"):
        fill(tmp_path / "train" / c)
        fill(tmp_path / "val" / c, 2)
    counts = {"val": 4, "plain.npz": 20, "val.npz": 4}
    for source in ("train", "plain.npz"):
        for other, count in counts.items():
            task = load_task(tmp_path / source, validation=tmp_path / other)
            assert len(task.y_validation) == count
            assert len(task.y_train) == (10 if source == "train" else 20)
    assert len(load_task(tmp_path / "val.npz").y_validation) == 4


def remove(folder) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


BROKEN = {
    "another name": (
        lambda sets: (sets / "val" / "dog").rename(sets / "val" / "dogs"),
        r"val: it has the classes 'dogs', but .*train has none of that name",
    ),
    "no images of a class": (
        lambda sets: remove(sets / "val" / "dog"),
        r"val: it has no images of 'dog', but .*train has",
    ),
    "an empty class": (
        lambda sets: [x.unlink() for x in (sets / "val" / "dog").iterdir()],
        "sub-folder 'dog' holds no files",
    ),
    "two of a kind": (
        lambda sets: (sets / "test").rename(sets / "valid"),
        "'val' and 'valid' are both images for one purpose",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_sets_that_do_not_agree_are_one_sentence(sets, name: str) -> None:
    change, told = BROKEN[name]
    change(sets)
    with pytest.raises(TaskError, match=told) as caught:
        load_task(sets)
    assert "\n" not in str(caught.value)


def test_a_class_without_arrays_to_choose_by_is_named(tmp_path) -> None:
    x, y = RNG.integers(0, 255, (20, 6, 8), dtype=np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, classes=np.array(["ant", "bee"]))
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y, x_val=x[:3], y_val=[0, 0, 0])
    with pytest.raises(TaskError, match="no image of class 'bee' to choose by"):
        load_task(tmp_path / "a.npz", validation=tmp_path / "b.npz")
    with pytest.raises(TaskError, match="no such file or folder"):
        load_task(tmp_path / "a.npz", validation=tmp_path / "c.npz")


def test_what_the_system_left_behind_is_no_image(tmp_path) -> None:
    for c in ("ant", "bee"):
        fill(tmp_path / c / "nested")
        fill(tmp_path / c / ".thumbnails")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
            (tmp_path / c / name).write_bytes(b"system")
    for name in ("__MACOSX", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "labels.csv").write_text("a,b")
    task = load_task(tmp_path)
    assert task.classes == ("ant", "bee")
    assert len(task.y_train) + len(task.y_test) == 10


def test_several_sizes_are_told_with_the_usual_one(sets) -> None:
    fill(sets / "val" / "ant", 1, (30, 40), 9)
    with pytest.raises(MixedSizesError, match=r"9.png: its size is 40 x 30.*--size") as caught:
        load_task(sets)
    assert caught.value.usual_side == 6
    assert load_task(sets, 8).x_validation.shape == (10, 3, 8, 8)


def test_one_image_in_colours_makes_all_of_them_so(tmp_path) -> None:
    for name in ("train", "val"):
        for c in "ab":
            fill(tmp_path / name / c, 1)
            for i in range(4):
                grey = RNG.integers(0, 255, (6, 8), dtype=np.uint8)
                path = tmp_path / name / c / f"grey{i}.png"
                image.fromarray(grey).save(path)
    for path in (tmp_path / "train").rglob("0.png"):
        path.unlink()
    assert load_task(tmp_path).channels == 3
    assert load_task(tmp_path / "train").channels == 1


def test_all_training_images_are_trained_on_where_others_are_chosen_by(sets) -> None:
    task, options = load_task(sets), InitializeOptions()
    split = split_images(task, 1000, options)
    assert len(split.y_train) == len(task.y_train)
    assert torch.equal(split.x_test, task.x_validation)
    alone = replace(task, x_validation=None, y_validation=None)
    held_out = split_images(alone, 1000, replace(options, validation=0.5))
    assert len(held_out.y_train) == len(held_out.y_test) == len(task.y_train) // 2


@pytest.mark.parametrize("share", ["0", "1", "2.5", "-1", "nan"])
def test_a_share_lies_between_none_and_all(share: str) -> None:
    from sane_plugins.cli.initialization.inputs import InputNames

    common = {"model": "", "factory": None, "task": "", "size": None, "prompts": (), "sane": None}
    names = InputNames(**common, sampler="", validation=share)
    with pytest.raises(UsageError, match="between 0 and 1"):
        _ = names.validation_share
