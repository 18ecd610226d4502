"""Provenance of initial weights: enough to reproduce them, in a safetensors file's one metadata entry."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import torch

import sane_plugins
from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.errors import SourceError
from sane_plugins.formats import HEADER, LazyTensors, require_file, sidecar, source_errors
from sane_plugins.generation import KDE, embedded_prompts, sampler_name
from sane_plugins.initialize.candidates import CandidateScore, CandidateSpec
from sane_plugins.initialize.options import InitializeOptions, TrainOptions
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.initialize.search import FewShotPrompts, SearchTrace
from sane_plugins.tasks import Task
from sane_plugins.weights import WeightGraph, tensors_digest

KEY = "provenance"
SAFE = ".safetensors"
FORMAT = 2


def build_provenance(
    problem: InitializationProblem,
    task: Task,
    prompts: Sequence[WeightGraph],
    spec: CandidateSpec,
    trace: SearchTrace,
    few_shot: FewShotPrompts | None = None,
    scores: Sequence[CandidateScore] = (),
) -> dict[str, Any]:
    """Return the provenance of a spec's weights; it holds no times and no paths of the machine."""
    return {
        "format": FORMAT,
        "seed": problem.options.seed,
        **input_hashes(task, prompts, problem.transfer.sane),
        "prompts_fit": problem.transfer.fits,
        "recipe": asdict(spec),
        "course": asdict(trace),
        "few_shot": None if few_shot is None else few_shot.to_json(),
        "options": options_to_json(problem.options),
        "scores": [asdict(score) for score in scores],
        "versions": environment_info(problem.options.device),
    }


def input_hashes(task: Task, prompts: Sequence[WeightGraph], sane: SANE) -> dict[str, Any]:
    """Return the hashes of all inputs, and licences as far as they are known."""
    embedded_prefix, license_name = f"{embedded_prompts().name}:", _package_license()
    return {
        "sane": fingerprint(sane),
        "task": {
            "name": task.name,
            "hash": tensors_digest([("x", task.x_train), ("y", task.y_train)]),
        },
        "prompts": [
            {
                "source": p.source,
                "hash": tensors_digest([(param.key, x) for param, x in p.items()]),
                "licence": license_name if p.source.startswith(embedded_prefix) else "not told",
            }
            for p in prompts
        ],
        "licences": {"sane-plugins": license_name},
    }


def environment_info(device: str) -> dict[str, str]:
    """Return the environment that may change a result's last bits: versions, device, threads."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {
        "sane-plugins": sane_plugins.__version__,
        "torch": torch.__version__,
        "device": name,
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def options_to_json(options: InitializeOptions) -> dict[str, Any]:
    """Return the options by their names; the sampler and the SANE as text."""
    # The sampler is a plugin's, and may be nothing that can be copied.
    fields = asdict(replace(options, sampler=KDE()))
    record = {"model" if name == "sane" else name: x for name, x in fields.items()}
    return {**record, "sampler": sampler_name(options.sampler), "model": str(options.sane or "")}


def options_from_provenance(provenance: Mapping[str, Any]) -> InitializeOptions:
    """Return the recorded options, apart from the sampler and the SANE, which are recorded by name."""
    stored = {k: v for k, v in provenance["options"].items() if k not in ("sampler", "model")}
    stored["train"] = TrainOptions(**stored["train"])
    for name in ("include", "exclude"):
        stored[name] = tuple(stored[name])
    return InitializeOptions(**stored)


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the provenance that `sane-init` stored with its file. Raises `SourceError` if there is none."""
    text = "{}"
    if require_file(path).suffix == SAFE:
        text = LazyTensors(path).metadata.get(HEADER, "{}")
    elif sidecar(path).is_file():
        text = sidecar(path).read_text(encoding="utf-8", errors="replace")
    with source_errors(path, "what it says of its origin is broken", "a whole file"):
        entry = json.loads(text)
    provenance = entry.get(KEY) if isinstance(entry, dict) else None
    if isinstance(provenance, dict) and provenance.get("format") == FORMAT:
        return provenance
    raise SourceError(
        path,
        "it does not say where its weights come from",
        "the provenance that sane-init writes",
        "name a file from sane-init",
    )


def _package_license() -> str:
    try:
        package = metadata("sane-plugins")
    except PackageNotFoundError:
        return "not told"
    names = [name for name in ("License-Expression", "License") if name in package]
    return str(package[names[0]]) if names else "not told"
