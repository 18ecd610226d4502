"""SANE, heads, denoiser and training-state files of strangers: one sentence about the file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hostile.bounded import run
from torch import nn

from sane_plugins.autoencoder import SANE, SANEConfig, embedded_sane, load_sane, save_sane
from sane_plugins.errors import SaneError, UsageError, ZooError
from sane_plugins.generation.denoiser import Denoiser, DenoiserConfig, load_denoiser, save_denoiser
from sane_plugins.pretraining.trainer_state import TrainerState, restore_state, save_state
from sane_plugins.pretraining.training_log import TrainingLog
from sane_plugins.properties import (
    FeatureDataset,
    fit_category,
    fit_head,
    load_heads,
    predict,
    save_heads,
)
from sane_plugins.weights import from_module

TINY = SANEConfig(
    token_width=16, latent_width=4, model_width=8, heads=2, layers=1, window=8, halo=2
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0.5, 2**60, 10**400, float("nan"), float("inf"), [], [1] * 3, {"a": [[]]}),
    "\x1b[31m" + "x" * 500,
)
SECONDS = 10.0
Header = dict[str, Any]


def _split(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def _join(path: Path, header: Header, body: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def _described(path: Path, change: Callable[[Header], None]) -> Path:
    """Return a copy of an artefact whose description is changed."""
    header, body = _split(path)
    ((key, text),) = header["__metadata__"].items()
    about = json.loads(text)
    change(about)
    header["__metadata__"][key] = json.dumps(about)
    return _join(path.with_name("changed.safetensors"), header, body)


def _mutations(about: Any) -> Iterator[Callable[[Any], None]]:
    """Yield functions that delete or replace one field, however deep it lies."""
    fields = about.items() if isinstance(about, dict) else enumerate(about)
    for key, value in fields:
        yield lambda x, key=key: x.pop(key)
        for new in VALUES:
            yield lambda x, key=key, new=new: x.__setitem__(key, new)
        if isinstance(value, dict | list) and value:
            for inner in _mutations(value):
                yield lambda x, key=key, inner=inner: inner(x[key])
    if isinstance(about, dict):
        yield lambda x: x.__setitem__("surplus", 1)


def _tensor_mutations(path: Path) -> Iterator[Path]:
    """Yield copies in which a tensor is missing, renamed, reshaped, of other bytes, or of another type."""
    header, body = _split(path)
    target = path.with_name("changed.safetensors")
    names = [name for name in header if name != "__metadata__"]
    for name in names[:: max(1, len(names) // 25)]:
        start, end = header[name]["data_offsets"]
        size = end - start
        others = {n: dict(header[n]) for n in names if n != name}
        for other in others.values():  # closes the gap
            a, b = other["data_offsets"]
            other["data_offsets"] = [a - size, b - size] if a >= end else [a, b]
        without = body[:start] + body[end:]
        about = {"__metadata__": header["__metadata__"]}
        yield _join(target, {**about, **others}, without)
        yield _join(target, _renamed(header, name), body)
        yield _join(
            target, {**header, name: {**header[name], "shape": [1, *header[name]["shape"]]}}, body
        )
        raw = {**header[name], "dtype": "U8", "shape": [size]}
        yield _join(target, {**header, name: raw}, body)
        for byte in (b"\xff", b"\x7f", b"\x00"):
            yield _join(target, header, body[:start] + byte * size + body[end:])


def _renamed(header: Header, name: str) -> Header:
    return {(f"{key}x" if key == name else key): value for key, value in header.items()}


def _samples() -> FeatureDataset:
    rng = np.random.default_rng(0)
    features = {"statistics": rng.normal(size=(40, 6)), "structure": np.ones((40, 3))}
    return FeatureDataset(features=features, networks=[f"n{i}" for i in range(40)])


@pytest.fixture(scope="module")
def heads_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples, few = _samples(), {"features": "statistics"}
    x = samples.features["statistics"][:, 0]
    heads = {
        "quality": fit_head("quality", samples, x, **few),
        "kind": fit_category("kind", samples, ["a" if v > 0 else "b" for v in x], **few),
    }
    return save_heads(heads, tmp_path_factory.mktemp("heads") / "heads.safetensors")


def _use_heads(path: Path) -> None:
    features = {"statistics": np.zeros(6), "structure": np.ones(3)}
    for head in load_heads(path).values():
        head.estimate(features)


def _run() -> TrainerState:
    model = SANE(TINY)
    optimizer = torch.optim.AdamW(model.parameters())
    return TrainerState(model, optimizer, TrainingLog(Path("log"), 1), {"steps": 3})


@pytest.fixture(scope="module")
def state_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_state, path = _run(), tmp_path_factory.mktemp("state") / "out.state"
    for parameter in run_state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    run_state.optimizer.step()
    run_state.log.sums, run_state.log.count, run_state.step = {"loss": 1.0}, 1, 1
    save_state(run_state, path)
    return path


def _resume(path: Path) -> None:
    run_state = _run()
    restore_state(run_state, path)
    for parameter in run_state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    run_state.optimizer.step()
    run_state.log.add(run_state.step, {"loss": 1.0}, 0.1, is_last=True)


def _use_sane(path: Path) -> None:
    model = load_sane(path)
    config = model.config
    assert 0 < config.window <= 2**14


@pytest.fixture(scope="module")
def sane_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sane(SANE(TINY), tmp_path_factory.mktemp("sane") / "sane.safetensors")


@pytest.fixture(scope="module")
def denoiser_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = DenoiserConfig(latent=4, places=5, task=6, sane="x", width=8, blocks=1)
    path = tmp_path_factory.mktemp("denoiser") / "denoiser.safetensors"
    return save_denoiser(Denoiser(config), path)


USES = {
    "sane_file": _use_sane,
    "denoiser_file": load_denoiser,
    "heads_file": _use_heads,
    "state_file": _resume,
}


@pytest.mark.parametrize("name", USES)
def test_every_changed_field_and_tensor_is_used_or_refused_in_one_sentence(
    name: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    USES[name](path)
    about = json.loads(next(iter(_split(path)[0]["__metadata__"].values())))
    descriptions = (_described(path, change) for change in _mutations(about))
    refused = 0
    for changed in chain(descriptions, _tensor_mutations(path)):
        start = time.process_time()
        try:
            USES[name](changed)
        except UsageError as error:
            assert name == "state_file"  # of a run with other options
            assert str(changed) in str(error)
        except SaneError as error:
            refused += 1
            assert str(changed) in str(error)
            assert len(str(error)) < 1000
            assert str(error).isprintable()
        assert time.process_time() - start < SECONDS
    assert refused > 100


CONFIGS: dict[str, dict[str, Any]] = {
    "a billion layers": {"layers": 10**9},
    "a width of 2^40": {"model_width": 2**40},
    "a window of 2^50": {"window": 2**50},
    "heads that do not divide": {"heads": 5},
    "no heads": {"heads": 0},
    "a negative width": {"latent_width": -1},
    "a table of 2^60 rows": {"tables": [2**60, 1, 1]},
    "slots beyond memory": {"scale": "zoo", "slots": 2**45},
    "NaN": {"layers": float("nan")},
    "a text": {"layers": "four"},
    "a surplus field": {"colour": 1},
}


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_is_checked_before_anything_is_built(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    path = save_sane(embedded_sane(), tmp_path / "sane.safetensors")
    changed = _described(path, lambda about: about["config"].update(fields))
    start = time.process_time()
    with pytest.raises(ZooError, match=r"changed\.safetensors: a part of it is wrong"):
        load_sane(changed)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("fields", [{"layers": 0}, {"window": 0}, {"tables": (1, 2)}, {"heads": 0}])
def test_a_caller_is_told_of_the_argument_not_of_a_file(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="SANEConfig"):
        SANEConfig(**fields)


def test_a_sane_leaves_the_random_numbers_of_the_process_alone(sane_file: Path) -> None:
    before = torch.get_rng_state()
    load_sane(sane_file)
    assert torch.equal(before, torch.get_rng_state())


def _change_tree(path: Path, field: str, change: Callable[[np.ndarray], None]) -> Path:
    header, body = _split(path)
    entry = header[f"kind/0/{field}"]
    start, end = entry["data_offsets"]
    types = {"U8": "u1", "U16": "<u2", "U32": "<u4", "I64": "<i8", "F32": "<f4", "F64": "<f8"}
    values = np.frombuffer(body[start:end], types[entry["dtype"]]).copy()
    change(values)
    changed = body[:start] + values.tobytes() + body[end:]
    return _join(path.with_name("changed.safetensors"), header, changed)


def _set(index: int, value: float) -> Callable[[np.ndarray], None]:
    return lambda x: x.__setitem__(index, value)


@pytest.mark.parametrize(
    ("field", "change", "found"),
    [
        ("depth", _set(0, 2**60), "depth"),
        ("depth", _set(0, -1), "depth"),
        ("left", lambda x: x.fill(0), "children"),
        ("right", _set(0, 255), "children"),
        ("feature", _set(0, 6), "feature"),
        ("roots", _set(1, 0), "roots"),
        ("roots", _set(-1, 2**60), "roots"),
        ("threshold", _set(0, float("nan")), "threshold"),
        ("value", _set(0, float("inf")), "value"),
        ("offset_factor", _set(0, float("nan")), "offset_factor"),
    ],
)
def test_trees_that_loop_or_lead_nowhere_are_told(
    heads_file: Path, field: str, change: Callable[[np.ndarray], None], found: str
) -> None:
    with pytest.raises(ZooError, match=rf"changed\.safetensors: .*head 'kind', .*{found}"):
        load_heads(_change_tree(heads_file, field, change))


@pytest.mark.parametrize("field", ["zoos", "classes"])
@pytest.mark.parametrize("value", ["ab", {"a": 1, "b": 2}, 2, None, [["a"], "b"], ["a" * 999, "b"]])
def test_lists_of_texts_that_are_none_are_told(heads_file: Path, field: str, value: object) -> None:
    changed = _described(heads_file, lambda about: about["heads"]["kind"].update({field: value}))
    with pytest.raises(ZooError, match=rf"changed\.safetensors: .*{field[:3]}"):
        load_heads(changed)


def test_heads_that_do_not_fit_the_features_are_told_at_the_command(
    heads_file: Path, tmp_path: Path
) -> None:
    network = tmp_path / "net.pt"
    torch.save(nn.Linear(3, 3).state_dict(), network)
    outcome = run("predict", network, "--heads", heads_file).require_small()
    sentence = outcome.require_sentence()
    assert f"{heads_file}: the head of 'quality' reads 6 features" in sentence
    assert "builtin" not in outcome.stderr


@pytest.mark.parametrize("name", ["quality", "kind"])
def test_an_estimate_that_overflows_is_no_answer(
    name: str, heads_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = load_heads(heads_file)[name]
    huge = replace(head.members[0], **_overflowing(head.members[0]))
    broken = replace(head, members=(huge,))
    encoder = SimpleNamespace(features=lambda *_: torch.ones(6, dtype=torch.float64))
    monkeypatch.setattr("sane_plugins.properties.prediction.ENCODERS", {"statistics": encoder})
    graph = from_module(nn.Linear(3, 3))
    assert predict(graph, {name: head})
    with pytest.raises(ZooError, match=f"the head of '{name}' gives no number"):
        predict(graph, {name: broken})


def _overflowing(member: Any) -> dict[str, np.ndarray]:
    if hasattr(member, "offset_factor"):
        return {"offset_factor": np.array([1e308, 1e308]), "value": member.value + 1.0}
    return {"offset": np.array([np.inf])}


def test_a_state_of_another_step_is_told(state_file: Path) -> None:
    changed = _described(state_file, lambda about: about.update(step=2**60))
    with pytest.raises(ZooError, match="step is no whole number"):
        _resume(changed)
