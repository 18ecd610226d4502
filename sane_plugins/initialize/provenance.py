"""Where initial weights come from: enough to make them again, in a safetensors file's one metadata entry."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import torch

import sane_plugins
from sane_plugins.atomic_files import write_whole
from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.errors import SourceError
from sane_plugins.formats import HEADER, LazyTensors, require_file, source_errors
from sane_plugins.generation import embedded_prompts
from sane_plugins.initialize.candidates import CandidateBuilder
from sane_plugins.initialize.few_shot import FewShotPrompts
from sane_plugins.initialize.options import CandidateScore, CandidateSpec, InitializeOptions
from sane_plugins.initialize.search import SearchTrace
from sane_plugins.initialize.training import TrainOptions
from sane_plugins.tasks import Task
from sane_plugins.weights import WeightGraph, tensor_digest

KEY = "provenance"
SAFE = ".safetensors"
FORMAT = 2


def trace(
    bench: CandidateBuilder,
    task: Task,
    prompts: Sequence[WeightGraph],
    sane: SANE,
    recipe: CandidateSpec,
    course: SearchTrace,
    rows: Sequence[CandidateScore],
    shots: FewShotPrompts | None = None,
) -> dict[str, Any]:
    """Return what the weights of a recipe came from; no time and no place of the machine is in it."""
    return {
        "format": FORMAT,
        "seed": bench.options.seed,
        **ingredients(task, prompts, sane),
        "prompts_fit": bench.transfer.fits,
        "recipe": asdict(recipe),
        "course": asdict(course),
        "few_shot": None if shots is None else asdict(shots),
        "options": _plain(bench.options),
        "scores": [asdict(row) for row in rows],
        "versions": surroundings(bench.options.device),
    }


def ingredients(task: Task, prompts: Sequence[WeightGraph], sane: SANE) -> dict[str, Any]:
    """Return the hashes of all that went in, and licences as far as they are told."""
    own = f"{embedded_prompts().name}:"
    return {
        "sane": fingerprint(sane),
        "task": {"name": task.name, "hash": _hash([("x", task.x_train), ("y", task.y_train)])},
        "prompts": [
            {
                "source": p.source,
                "hash": content_hash(p),
                "licence": _licence() if p.source.startswith(own) else "not told",
            }
            for p in prompts
        ],
        "licences": {"sane-plugins": _licence()},
    }


def surroundings(device: str) -> dict[str, str]:
    """Return what may change the last bits of a result."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {
        "sane-plugins": sane_plugins.__version__,
        "torch": torch.__version__,
        "device": name,
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def restored(told: Mapping[str, Any]) -> InitializeOptions:
    """Return the options that were noted, apart from the sampler and the SANE, which have names."""
    left = {k: v for k, v in told["options"].items() if k not in ("sampler", "model")}
    left["train"] = TrainOptions(**left["train"])
    for name in ("include", "exclude"):
        left[name] = tuple(left[name])
    return InitializeOptions(**left)


def content_hash(graph: WeightGraph) -> str:
    """Return a hash of a network's names, shapes, types and values."""
    return _hash((param.key, tensor) for param, tensor in graph.items())


def inscribe(path: Path, told: Mapping[str, Any]) -> Path:
    """Write the provenance into a safetensors file's one metadata entry, or beside a file of another form."""
    if path.suffix != SAFE:
        plain = json.dumps({KEY: told}, default=str) + "\n"
        write_whole(_beside(path), lambda partial: partial.write_text(plain, encoding="utf-8"))
        return path
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    own = json.loads(header.get("__metadata__", {}).get(HEADER, "{}"))
    header["__metadata__"] = {
        HEADER: json.dumps({**own, KEY: json.loads(json.dumps(told, default=str))})
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text + data[8 + size :]
    return write_whole(path, lambda partial: partial.write_bytes(whole))


def read_provenance(path: Path) -> dict[str, Any]:
    """Return what `inscribe` wrote. Raises `SourceError` where there is none."""
    text = "{}"
    if require_file(path).suffix == SAFE:
        text = LazyTensors(path).metadata.get(HEADER, "{}")
    elif _beside(path).is_file():
        text = _beside(path).read_text(encoding="utf-8", errors="replace")
    with source_errors(path, "what it says of its origin is broken", "a whole file"):
        own = json.loads(text)
    found = own.get(KEY) if isinstance(own, dict) else None
    if isinstance(found, dict) and found.get("format") == FORMAT:
        return found
    raise SourceError(
        path,
        "it does not say where its weights come from",
        "the provenance that sane-init writes",
        "name a file from sane-init",
    )


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.provenance.json")


def _plain(options: InitializeOptions) -> dict[str, Any]:
    return {**asdict(options), "sampler": repr(options.sampler), "model": str(options.model or "")}


def _hash(tensors: Any) -> str:
    found = sha256()
    for key, tensor in tensors:
        found.update(f"{key} {tensor_digest(tensor)} ".encode())
    return found.hexdigest()[:32]


def _licence() -> str:
    try:
        told = metadata("sane-plugins")
    except PackageNotFoundError:
        return "not told"
    names = [name for name in ("License-Expression", "License") if name in told]
    return str(told[names[0]]) if names else "not told"
