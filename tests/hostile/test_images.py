"""Images of strangers: sizes are checked before decoding, numbers are computed with rightly or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile.bounded import run_python

from sane_plugins.errors import TaskError
from sane_plugins.tasks import load_task

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
X, Y = RNG.random((20, 6, 6)), np.arange(20) % 2


def _image(array: Array, mode: str | None = None) -> Any:
    image = pytest.importorskip("PIL.Image")
    made = image.fromarray(array)
    return made if mode is None else made.convert(mode)


def _folder(path: Path, make: Callable[[int], Any], count: int = 3, suffix: str = ".png") -> Path:
    for number in range(2 * count):
        file = path / "ab"[number % 2] / f"{number}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        make(number).save(file)
    return path


def _grey(number: int) -> Any:
    return _image(np.random.default_rng(number).integers(0, 256, (9, 9)).astype(np.uint8))


def _npz(path: Path, **arrays: Array) -> Path:
    np.savez_compressed(path / "task.npz", **{"x_train": X, "y_train": Y, **arrays})
    return path / "task.npz"


def test_six_huge_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    code = (
        "from PIL import Image; import io; from pathlib import Path\n"
        "file = io.BytesIO(); Image.new('1', (13000, 13000)).save(file, 'png')\n"
        "for i in range(6):\n"
        "    path = Path('ab'[i % 2]) / f'{i}.png'; path.parent.mkdir(exist_ok=True)\n"
        "    path.write_bytes(file.getvalue())"
    )
    assert run_python("-c", code, cwd=tmp_path).code == 0
    load = f"from sane_plugins.tasks import load_task; load_task({str(tmp_path)!r}, 28)"
    outcome = run_python("-c", load).require_small()
    assert "13000 x 13000 pixels in" in outcome.stderr


def test_images_that_are_large_together_need_a_size(tmp_path: Path) -> None:
    folder = _folder(tmp_path, lambda _: _image(np.zeros((2000, 2000, 3), np.uint8)))
    with pytest.raises(TaskError, match="--size"):
        load_task(folder)
    assert load_task(folder, 8).size == (8, 8)


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    arrays = [
        np.random.default_rng(i).integers(0, 2**16, (9, 9)).astype(np.uint16) for i in range(6)
    ]
    fine = load_task(_folder(tmp_path / "fine", lambda i: _image(arrays[i])))
    coarse = load_task(
        _folder(tmp_path / "coarse", lambda i: _image((arrays[i] / 257).astype(np.uint8)))
    )
    assert len(fine.x_train.unique()) > 256
    np.testing.assert_allclose(fine.x_train, coarse.x_train, atol=0.02)
    assert load_task(tmp_path / "fine", 5).x_train.unique().numel() > 50


def test_sixteen_and_eight_bits_mix(tmp_path: Path) -> None:
    ramp = np.arange(81).reshape(9, 9)
    deep = (ramp * 257).astype(np.uint16)
    folder = _folder(tmp_path, lambda i: _image(deep if i % 2 else ramp.astype(np.uint8)))
    task = load_task(folder)
    assert len(task.x_train.flatten(1).unique(dim=0)) == 1


def test_pixels_without_a_range_do_not_mix_with_others(tmp_path: Path) -> None:
    floats = np.arange(81, dtype=np.float32).reshape(9, 9)
    folder = _folder(tmp_path / "f", lambda i: _image(floats + i), suffix=".tif")
    assert load_task(folder).x_train.isfinite().all()
    _grey(0).save(folder / "b" / "z.tif")
    with pytest.raises(TaskError, match=r"z\.tif: .*do not measure alike"):
        load_task(folder)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_is_read_or_refused(mode: str, tmp_path: Path) -> None:
    suffix = {"CMYK": ".tif", "YCbCr": ".tif", "HSV": ".tif", "PA": ".tif"}.get(mode, ".png")
    try:
        folder = _folder(tmp_path, lambda i: _grey(i).convert(mode), suffix=suffix)
    except (OSError, ValueError):
        pytest.skip("Pillow writes no such file")
    assert load_task(folder).x_train.isfinite().all()


def test_icons_may_be_larger_than_they_say_and_are_not_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path, _grey, suffix=".ico")
    with pytest.raises(TaskError, match=r"0\.ico: it cannot be read as an image"):
        load_task(folder)


@pytest.mark.parametrize("value", [0.1, 1e7, 1e20, 1e38])
def test_a_constant_channel_is_0(value: float, tmp_path: Path) -> None:
    task = load_task(_npz(tmp_path, x_train=np.stack([X, np.full_like(X, value)], -1)))
    assert not task.x_train[:, 1].any()
    assert not task.x_test[:, 1].any()


def test_no_other_program_is_started_for_an_image(tmp_path: Path) -> None:
    folder = _folder(tmp_path, lambda i: _grey(i).convert("RGB"), suffix=".eps")
    with pytest.raises(TaskError, match="cannot be read as an image"):
        load_task(folder)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".tif", ".bmp", ".webp"])
def test_damaged_images_are_one_sentence_or_an_image(suffix: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, _grey, count=2, suffix=suffix)
    file = folder / "a" / f"0{suffix}"
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for i in range(60):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if i % 4 == 0 else whole)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(0, 256)
        file.write_bytes(damaged)
        try:
            load_task(folder, 9)
        except TaskError as error:
            assert "Traceback" not in str(error)


NUMBERS: dict[str, Array] = {
    "float64 of 1e200": X * 1e200,
    "NaN": np.where(X > 0.9, np.nan, X),
    "minus infinity": np.where(X > 0.9, -np.inf, X),
    "whole numbers that single precision does not tell apart": 2**62 + (X * 99).astype(np.int64),
    "below what single precision tells from 0": X * 1e-300,
}


@pytest.mark.parametrize("x", NUMBERS.values(), ids=NUMBERS)
def test_pixels_out_of_reach_are_refused(x: Array, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task\.npz"):
        load_task(_npz(tmp_path, x_train=x))


SCALED = {
    "near the limit of float32": (X * 3e38).astype(np.float32),
    "1e18": X * 1e18,
    "1e-20": X * 1e-20,
    "int64": (X * 2**60).astype(np.int64),
}


@pytest.mark.parametrize("x", SCALED.values(), ids=SCALED)
def test_pixels_of_any_scale_are_the_same_task(x: Array, tmp_path: Path) -> None:
    expected = load_task(_npz(tmp_path)).x_train
    np.testing.assert_allclose(load_task(_npz(tmp_path, x_train=x)).x_train, expected, atol=1e-4)


WRONG: dict[str, dict[str, Array]] = {
    "a label of 2^60": {"y_train": np.where(Y == 1, 2**60, 0)},
    "a label of 2^63": {"y_train": np.where(Y == 1, 2**63, 0).astype(np.uint64)},
    "fractions as labels": {"y_train": Y + 0.5},
    "no image": {"x_train": X[:0], "y_train": Y[:0]},
    "text": {"x_train": X.astype(str)},
    "complex": {"x_train": X.astype(complex)},
    "dates": {"x_train": np.zeros((20, 6, 6), "M8[s]")},
    "half a million classes": {
        "x_train": np.zeros((1_000_000, 1, 1), np.uint8),
        "y_train": np.arange(1_000_000) // 2,
    },
    "packed too tightly": {"x_train": np.zeros((20, 2048, 2048), np.uint8)},
}


@pytest.mark.parametrize("arrays", WRONG.values(), ids=WRONG)
def test_wrong_arrays_are_told(arrays: dict[str, Array], tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task\.npz"):
        load_task(_npz(tmp_path, **arrays))


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="pickled"):
        load_task(_npz(tmp_path, x_train=X.astype(object)))


@pytest.mark.parametrize("size", [193, 100_000, 2**62])
def test_a_size_is_bounded_before_anything_is_allocated(size: int, tmp_path: Path) -> None:
    for source in (_npz(tmp_path), _folder(tmp_path / "images", _grey)):
        with pytest.raises(TaskError, match="at most 32 times"):
            load_task(source, max(size, 300))


def test_many_images_are_not_enlarged_beyond_memory(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3000, 100, 100), np.uint8)
    source = _npz(tmp_path, x_train=images, y_train=np.arange(3000) % 2)
    with pytest.raises(TaskError, match="a task has at most"):
        load_task(source, 3000)
