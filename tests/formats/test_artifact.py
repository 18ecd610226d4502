"""Every artefact is written in one form, and answers what is wrong with a file in the same words."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sane_plugins.autoencoder import (
    SANE,
    SANEConfig,
    embedded_sane,
    load_sane,
    read_metadata,
    save_sane,
)
from sane_plugins.errors import SourceError, UsageError, ZooError
from sane_plugins.formats import (
    DENOISER,
    EMBEDDINGS,
    PRETRAINING_STATE,
    PROPERTY_HEADS,
    SANE_MODEL,
    ZOO_TRAINING_STATE,
    ArtifactKind,
    StoredRows,
    load_artifact,
    open_file,
    save_artifact,
    save_safetensors,
    stream_artifact,
)
from sane_plugins.generation.denoiser import load_denoiser, save_denoiser
from sane_plugins.pretraining.trainer_state import TrainerState, restore_state
from sane_plugins.pretraining.training_log import TrainingLog
from sane_plugins.properties import embedded_heads, load_heads, save_heads
from sane_plugins.weights import from_module
from sane_plugins.zoo_training.group_trainer import load_group_state

DATA = Path(__file__).parents[2] / "sane_plugins" / "data"
TINY = SANEConfig(
    token_width=16, latent_width=4, model_width=8, heads=2, layers=1, window=8, halo=2
)


def _resume(path: Path) -> None:
    model = SANE(TINY)
    optimizer = torch.optim.AdamW(model.parameters())
    restore_state(TrainerState(model, optimizer, TrainingLog(path, 1), {}), path)


LOADERS: dict[ArtifactKind, Callable[[Path], object]] = {
    SANE_MODEL: load_sane,
    PROPERTY_HEADS: load_heads,
    DENOISER: load_denoiser,
    PRETRAINING_STATE: _resume,
    ZOO_TRAINING_STATE: load_group_state,
}
EVERY_LOADER = pytest.mark.parametrize("kind", LOADERS, ids=lambda kind: kind.key)


def _refusal(kind: ArtifactKind, path: Path) -> ZooError:
    with pytest.raises(ZooError) as caught:
        LOADERS[kind](path)
    return caught.value


def _written(path: Path, kind: ArtifactKind, text: str) -> Path:
    save_file({"x": torch.zeros(1)}, path, {kind.key: text})
    return path


@EVERY_LOADER
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "it does not exist"),
        (b"", "it is empty"),
        (b"no", "it is no whole safetensors file"),
        (b"\xff" * 100, "it is no whole safetensors file"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_alike_by_every_artefact(
    kind: ArtifactKind, content: bytes | None, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    if content is not None:
        path.write_bytes(content)
    error = _refusal(kind, path)
    assert (error.place, error.found) == (str(path), found)
    assert (error.needed, error.way_out) == (kind.needed, kind.way_out)


@EVERY_LOADER
def test_a_file_that_is_cut_short_is_told_alike(kind: ArtifactKind, tmp_path: Path) -> None:
    path = _written(tmp_path / "file.safetensors", kind, "{}")
    path.write_bytes(path.read_bytes()[:-1])
    assert _refusal(kind, path).found == "it is no whole safetensors file"


@EVERY_LOADER
@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "null"])
def test_a_description_that_is_no_json_object_is_told_alike(
    kind: ArtifactKind, text: str, tmp_path: Path
) -> None:
    path = _written(tmp_path / "file.safetensors", kind, text)
    assert _refusal(kind, path).found.startswith("its description is no JSON")


@EVERY_LOADER
def test_another_version_is_told(kind: ArtifactKind, tmp_path: Path) -> None:
    path = _written(tmp_path / "file.safetensors", kind, '{"version": 99}')
    error = _refusal(kind, path)
    assert error.found == "its version is 99"
    assert error.needed == kind.needed


@EVERY_LOADER
def test_a_missing_part_is_named(kind: ArtifactKind, tmp_path: Path) -> None:
    about = {} if kind.version is None else {"version": kind.version}
    path = _written(tmp_path / "file.safetensors", kind, json.dumps(about))
    assert "is missing" in _refusal(kind, path).found


@pytest.mark.parametrize("config", [{"width": "wide"}, {"heads": -1}, [], 7])
def test_a_wrong_part_is_one_sentence(config: object, tmp_path: Path) -> None:
    for kind in (SANE_MODEL, DENOISER):
        about = json.dumps({"version": 1, "config": config})
        error = _refusal(kind, _written(tmp_path / "file.safetensors", kind, about))
        assert error.found.startswith("a part of it is wrong")


def test_tensors_that_do_not_fit_the_configuration_are_one_sentence(tmp_path: Path) -> None:
    about = json.dumps({"version": 1, "config": asdict(TINY)})
    error = _refusal(SANE_MODEL, _written(tmp_path / "file.safetensors", SANE_MODEL, about))
    assert error.found.startswith("a part of it is wrong")
    assert "\n" not in str(error)


@EVERY_LOADER
def test_an_artefact_of_another_kind_is_named(kind: ArtifactKind, tmp_path: Path) -> None:
    for other in {*LOADERS, EMBEDDINGS} - {kind}:
        path = _written(tmp_path / "file.safetensors", other, "{}")
        assert _refusal(kind, path).found == f"it holds {other.name}"
    network = save_safetensors(from_module(torch.nn.Linear(2, 2)), tmp_path / "net.safetensors")
    assert _refusal(kind, network).found == "it holds a network"
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert _refusal(kind, tmp_path / "other.safetensors").found == f"it holds no {kind.noun}"


def test_the_sentence_of_a_wrong_kind() -> None:
    with pytest.raises(ZooError) as caught:
        load_sane(DATA / "heads.safetensors")
    assert str(caught.value) == (
        f"{DATA / 'heads.safetensors'}: it holds property heads, but a SANE of version 1 is needed; "
        "check the path, or pretrain one with 'sane-plugins pretrain'."
    )


@pytest.mark.parametrize("kind", [*LOADERS, EMBEDDINGS], ids=lambda kind: kind.key)
def test_no_artefact_is_taken_for_a_network(kind: ArtifactKind, tmp_path: Path) -> None:
    path = _written(tmp_path / "file.safetensors", kind, "{}")
    with pytest.raises(SourceError, match=f"our own {kind.noun}"):
        open_file(path)


def test_shipped_artefacts_are_read_and_written_to_the_same_bytes(tmp_path: Path) -> None:
    about = read_metadata(DATA / "sane.safetensors")
    sane = save_sane(embedded_sane(), tmp_path / "sane.safetensors", about, torch.float16)
    assert sane.read_bytes() == (DATA / "sane.safetensors").read_bytes()
    denoiser = load_denoiser(DATA / "diffusion.safetensors")
    again = save_denoiser(denoiser, tmp_path / "diffusion.safetensors")
    assert again.read_bytes() == (DATA / "diffusion.safetensors").read_bytes()
    heads = save_heads(embedded_heads(), tmp_path / "heads.safetensors")
    assert heads.read_bytes() == (DATA / "heads.safetensors").read_bytes()


def test_a_user_error_of_a_reader_is_not_reworded(tmp_path: Path) -> None:
    def refuse(_about: object, _tensors: object) -> None:
        raise UsageError(tmp_path, "other options", "the same", "repeat them")

    path = save_artifact(PRETRAINING_STATE, {}, {"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="other options"):
        load_artifact(PRETRAINING_STATE, path, refuse)


def test_loaded_tensors_outlive_a_change_of_the_file(tmp_path: Path) -> None:
    path = save_artifact(PRETRAINING_STATE, {}, {"x": torch.ones(5)}, tmp_path / "a.safetensors")
    tensors = load_artifact(PRETRAINING_STATE, path, lambda _, tensors: tensors)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(tensors["x"], torch.ones(5))


def test_a_streamed_artefact_is_what_the_library_reads(tmp_path: Path) -> None:
    rows = torch.arange(12.0).view(3, 4)
    (tmp_path / "rows").write_bytes(rows.numpy().tobytes())
    tensors = {"a": StoredRows(tmp_path / "rows", 3), "b": torch.ones(2, dtype=torch.float64)}
    stored = load_file(stream_artifact(EMBEDDINGS, tensors, tmp_path / "e.safetensors"))
    assert torch.equal(stored["a"], rows)
    assert torch.equal(stored["b"], torch.ones(2, dtype=torch.float64))
