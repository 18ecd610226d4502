"""A task says what was done to its pixels: the images as they were come back, whatever was done since."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from sane_plugins.errors import TaskError
from sane_plugins.runtime import threads
from sane_plugins.tasks import Task, load_task

RNG = np.random.default_rng(0)
LABELS = np.arange(40) % 4


def pixels(*shape: int) -> np.ndarray:
    """Return images whose channels differ in brightness and contrast."""
    channels = np.arange(1, shape[-1] + 1) if len(shape) == 4 else np.ones(1)
    return (20 * channels + RNG.integers(0, 40, shape) * channels).astype(np.uint8)


def save(tmp_path, x: np.ndarray, **more: object):
    path = tmp_path / "task.npz"
    np.savez(path, x_train=x, y_train=LABELS, x_test=x[:8], y_test=LABELS[:8], **more)
    return path


def brightness(task: Task, x: torch.Tensor) -> torch.Tensor:
    """Return images as they were before they were standardised, between 0 and 1."""
    mean, deviation = (
        torch.tensor(numbers)[:, None, None] for numbers in (task.pixel_mean, task.pixel_deviation)
    )
    return x * deviation + mean


CHANGES: dict[str, Callable[[Task], Task]] = {
    "as read": lambda task: task,
    "resized": lambda task: task.resized(9),
    "resized twice": lambda task: task.resized((12, 4)).resized(9),
    "moved": lambda task: task.to("cpu"),
    "some of them": lambda task: task.subset(40, torch.Generator()),
}
SIZES = {"resized": [(9, 9)], "resized twice": [(12, 4), (9, 9)]}


@pytest.mark.parametrize("change", CHANGES)
def test_images_come_back(tmp_path, change: str) -> None:
    x = pixels(40, 6, 5, 3)
    task = CHANGES[change](load_task(save(tmp_path, x)))
    given = torch.from_numpy(x[:8]).permute(0, 3, 1, 2) / 255
    for size in SIZES.get(change, ()):
        given = interpolate(given, size, mode="bilinear", antialias=True)
    assert torch.allclose(brightness(task, task.x_test), given, atol=1e-5)
    assert task.pixel_unit == 255


def test_grey_images_that_are_repeated_and_split_come_back(tmp_path) -> None:
    x = pixels(40, 6, 5)
    task = load_task(save(tmp_path, x)).repeated(3).held_out(0.5, torch.Generator())
    assert len(task.pixel_mean) == len(task.pixel_deviation) == 3
    given = sorted((x / 255).sum((1, 2)))
    both = torch.cat([brightness(task, part) for part in (task.x_train, task.x_test)])
    assert np.allclose(sorted(both[:, 2].sum((1, 2)).tolist()), given, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "factor", "unit"),
    [
        (np.uint8, 1, 255),
        (np.int64, 1, 255),
        (np.uint16, 257, 65535),
        (np.float32, 1 / 255, 1),
        (np.float32, 1, 255),
        (np.float64, 1 / 1000, 1),
    ],
)
def test_a_brightness_is_the_same_in_every_type(tmp_path, kind: type, factor, unit) -> None:
    x = pixels(40, 6, 5)
    x[0, 0, 0] = 255
    task = load_task(save(tmp_path, (x * float(factor)).astype(kind)))
    assert task.pixel_unit == unit
    shrunk = 255 / 1000 if factor == 1 / 1000 else 1
    assert task.pixel_mean[0] == pytest.approx(shrunk * x.mean() / 255, rel=1e-4)
    assert task.pixel_deviation[0] == pytest.approx(shrunk * x.std() / 255, rel=1e-4)


def test_floats_with_negative_values_count_as_they_are(tmp_path) -> None:
    x = pixels(40, 6, 5) - np.float32(100)
    task = load_task(save(tmp_path, x))
    assert task.pixel_unit == 1
    assert task.pixel_mean[0] == pytest.approx(x.mean(), rel=1e-4)


def test_a_task_made_by_hand_has_images_as_they_are() -> None:
    x, y = torch.rand(6, 3, 4, 4), torch.arange(6) % 2
    task = Task(name="mine", x_train=x, y_train=y, x_test=x, y_test=y, classes=("a", "b"))
    assert task.pixel_mean == (0, 0, 0)
    assert task.pixel_deviation == (1, 1, 1)
    assert torch.allclose(brightness(task.standardized(), task.standardized().x_test), x, atol=1e-6)


def test_classes_of_an_npz_are_named(tmp_path) -> None:
    x, names = pixels(40, 6, 5), ["ant", "bee", "cat", "dog"]
    for given in (np.array(names), np.array(names, "S"), np.array([*names, "eel"])):
        assert load_task(save(tmp_path, x, classes=given)).classes == tuple(names)
    numbers = ("0", "1", "2", "3")
    for other in (np.array(names, object), np.array(4), np.eye(4)):
        assert load_task(save(tmp_path, x, classes=other)).classes == numbers
    with pytest.raises(TaskError, match="names 3 classes, but the labels are those of 4"):
        load_task(save(tmp_path, x, classes=np.array(names[:3])))


def test_images_are_the_same_to_the_bit_whatever_the_number_of_threads() -> None:
    read = []
    for count in (1, 2, 5):
        with threads(count):
            read.append(load_task("digits").resized(28))  # torch's own sums of these differ
    assert all(torch.equal(task.x_train, read[0].x_train) for task in read)
    assert len({(task.pixel_mean, task.pixel_deviation) for task in read}) == 1
