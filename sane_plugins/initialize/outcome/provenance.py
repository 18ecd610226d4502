"""Provenance of initial weights: enough to reproduce them, in a safetensors file's one metadata entry."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, metadata
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

import sane_plugins
from sane_plugins.arguments import ArgumentTypeError, from_plain
from sane_plugins.autoencoder import SANE, fingerprint
from sane_plugins.errors import SourceError
from sane_plugins.formats import read_metadata
from sane_plugins.generation import KDE, embedded_prompts, sampler_name
from sane_plugins.initialize.draws import FewShotPrompts, SearchTrace
from sane_plugins.initialize.kinds import CandidateScore, CandidateSpec
from sane_plugins.initialize.options import MOST, InitializeOptions
from sane_plugins.initialize.plan import Plan
from sane_plugins.initialize.problem import InitializationProblem
from sane_plugins.tasks import Task
from sane_plugins.weights import WeightGraph, tensors_digest

KEY = "provenance"
SAFE = ".safetensors"
FORMAT = 2


# Smallest and largest value of what can be used, and of what decides how much work it is.
_RANGES: Mapping[str, tuple[float, float]] = {
    "options.candidates": (1, MOST["candidates"]),
    "options.keep": (1, MOST["keep"]),
    "options.validation": (1e-6, 1 - 1e-6),
    "options.validation_images": (1, 2**31),
    "options.images": (1, 2**31),
    "options.norm_batches": (1, 2**31),
    "options.norm_batch": (1, 2**31),
    "options.fit_images": (1, 2**31),
    "options.rung": (0, MOST["rung"]),
    "options.rounds": (1, MOST["rounds"]),
    "options.few_shot_epochs": (1, MOST["few_shot_epochs"]),
    "options.refine": (0, MOST["refine"]),
    "options.train.lr": (0, 1e6),
    "options.train.momentum": (0, 1),
    "options.train.weight_decay": (0, 1e6),
    "options.train.batch": (1, 2**31),
    "recipe.number": (0, MOST["candidates"]),
    "recipe.round": (0, MOST["rounds"] - 1),
    "recipe.layers": (1e-6, 1),
    "threads": (1, 1024),
}
_DEVICES = re.compile(r"(cpu|mps|(cuda|xpu)(:\d{1,3})?)")


@dataclass(frozen=True)
class InputRecord:
    """What a provenance says of a task or a prompt: its name and the hash of its values."""

    hash: str
    name: str = ""
    source: str = ""
    licence: str = ""


@dataclass(frozen=True)
class FewShotRecord:
    """`FewShotPrompts`, under the names that files have."""

    recipes: tuple[CandidateSpec, ...]
    course: SearchTrace


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a file says of its weights' origin, checked as far as it can be before anything is made.

    `stored` is all of it as it was read. `options` lack the sampler and the SANE, which the command names.
    """

    stored: Mapping[str, Any]
    command: Mapping[str, Any]
    sane: str
    task: InputRecord
    prompts: tuple[InputRecord, ...]
    recipe: CandidateSpec
    course: SearchTrace
    few_shot: FewShotPrompts | None
    options: InitializeOptions
    versions: Mapping[str, str]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Provenance:
        """Check what `build_provenance` and the command wrote. Raises `ArgumentTypeError`."""

        def take(hint: Any, name: str, part: Mapping[str, Any] = stored) -> Any:
            return from_plain(hint, part.get(name), name)

        options = {
            key: value
            for key, value in take(Mapping, "options").items()
            if key not in ("sampler", "model")
        }
        few_shot = take(FewShotRecord | None, "few_shot")
        provenance = cls(
            stored=stored,
            command=take(Mapping, "command"),
            sane=take(str, "sane"),
            task=take(InputRecord, "task"),
            prompts=take(tuple[InputRecord, ...], "prompts"),
            recipe=take(CandidateSpec, "recipe"),
            course=take(SearchTrace, "course"),
            few_shot=few_shot and FewShotPrompts(few_shot.recipes, few_shot.course),
            options=from_plain(InitializeOptions, options, "options"),
            versions={
                name: take(str, name, stored["versions"]) for name in take(Mapping, "versions")
            },
        )
        provenance._require_ranges()
        return provenance

    @property
    def threads(self) -> int:
        """Return the number of threads that the weights were made with."""
        return int(self.versions["threads"])

    def _require_ranges(self) -> None:
        """Raise `ArgumentTypeError` for numbers that ask for more work than anyone does, or for none."""
        threads = self.versions.get("threads", "missing")
        if not re.fullmatch("[0-9]{1,9}", threads):
            least, most = _RANGES["threads"]
            raise _out_of_range("versions, threads", threads, f"{least:,} to {most:,}")
        for name, (least, most) in _RANGES.items():
            value = attrgetter(name)(self)
            if value is not None and not least <= value <= most:
                raise _out_of_range(name, value, f"{least:,} to {most:,}")
        if not _DEVICES.fullmatch(self.options.device):
            raise _out_of_range("options.device", self.options.device, "cpu or cuda")
        few_shot = len(self.few_shot.specs) if self.few_shot else 0
        if few_shot > MOST["few_shot"]:
            raise _out_of_range("few_shot", few_shot, f"at most {MOST['few_shot']}")
        specs = self.few_shot.specs if self.few_shot else ()
        for spec in specs:
            for name in ("number", "round", "layers"):
                least, most = _RANGES[f"recipe.{name}"]
                if not least <= getattr(spec, name) <= most:
                    raise _out_of_range(
                        f"few_shot.{name}", getattr(spec, name), f"{least} to {most}"
                    )


def _out_of_range(name: str, value: object, needed: str) -> ArgumentTypeError:
    return ArgumentTypeError(name, f"it is {str(value)[:80]}", f"{needed} is needed", "")


def build_provenance(
    problem: InitializationProblem,
    task: Task,
    prompts: Sequence[WeightGraph],
    spec: CandidateSpec,
    trace: SearchTrace,
    few_shot: FewShotPrompts | None = None,
    scores: Sequence[CandidateScore] = (),
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Return the provenance of a spec's weights; it holds no times and no paths of the machine.

    What was planned is there without the seconds it was to take, for the same reason.
    """
    return {
        "format": FORMAT,
        "seed": problem.options.seed,
        **input_hashes(task, prompts, problem.sane),
        "prompts_fit": problem.transfer is not None and problem.transfer.fits,
        "recipe": asdict(spec),
        "course": asdict(trace),
        "plan": None if plan is None else {**asdict(plan), "seconds": None},
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


def read_provenance(path: Path) -> Provenance:
    """Return the provenance that `sane-init` stored with its file.

    Raises `SourceError` if there is none, or if it is not what `sane-init` writes.
    """
    stored = read_metadata(path).get(KEY)
    if isinstance(stored, dict) and stored.get("format") == FORMAT:
        try:
            return Provenance.from_json(stored)
        except ArgumentTypeError as error:
            raise broken_provenance(path, error) from error
    raise SourceError(
        path,
        "it does not say where its weights come from",
        "the provenance that sane-init writes",
        "name a file from sane-init",
    )


def broken_provenance(path: Path, error: ArgumentTypeError) -> SourceError:
    """Return the error for a file whose provenance says what `sane-init` does not."""
    return SourceError(
        path,
        f"what it says of its origin is broken ({error.place}: {error.found})",
        f"{error.needed} there",
        "name a file from sane-init",
    )


def _package_license() -> str:
    try:
        package = metadata("sane-plugins")
    except PackageNotFoundError:
        return "not told"
    names = [name for name in ("License-Expression", "License") if name in package]
    return str(package[names[0]]) if names else "not told"
