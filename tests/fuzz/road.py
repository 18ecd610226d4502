"""The whole road of one network, and what became of it."""

from __future__ import annotations

import hashlib
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import sane_onnx
import torch
from fuzz import archives, headers, plain_bytes, protobuf
from fuzz.case import Case, Mutation
from fuzz.case import copied as copied
from fuzz.corpus import CANARY, FORMATS, Base
from fuzz.guard import GROWTH, Guard, HangError, Peak

from sane_plugins.builtin import Builtin
from sane_plugins.errors import PluginError, SaneError
from sane_plugins.host import Host
from sane_plugins.symmetry import permutation_groups, permute, random_permutations
from sane_plugins.weights import WeightGraph, detokenize, tokenize

WIDTH = 128
BUILTIN = Builtin(Host.installed())
_OWN: Mapping[str, dict[str, Mutation]] = {
    "onnx": protobuf.MUTATIONS,
    "checkpoint": archives.CHECKPOINT,
    "torchscript": archives.TORCHSCRIPT,
    "exported": archives.EXPORTED,
    "safetensors": headers.SAFETENSORS,
    "sharded": headers.SHARDED,
    "npz": archives.NPZ,
}
# ONNX has the most to get wrong.
_SHARES = {"onnx": 8, "checkpoint": 5, **dict.fromkeys(FORMATS[2:], 2)}


class LostError(Exception):
    """Values changed, or came from where nobody may read."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case: read, refused, crash, hang, memory or escape; and how, if not well."""

    case: int
    form: str
    strategy: str
    base: str
    outcome: str
    stage: str = ""
    error: str = ""
    where: str = ""
    digest: str = ""

    def to_json(self) -> dict[str, object]:
        """Return what is not empty."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


def strategies(form: str) -> dict[str, Mutation]:
    """Return what can be done to a form, by name."""
    return {**plain_bytes.MUTATIONS, **_OWN[form]}


def prepare(
    index: int, seed: int, bases: list[Base], folder: Path, secrets: Path, form: str | None = None
) -> tuple[Base, str, Path]:
    """Make a case in its folder: the same one for the same numbers and files."""
    rng = Random(f"{seed}:{index}:{form}")
    drawn = form or rng.choices(FORMATS, [_SHARES[f] for f in FORMATS])[0]
    fitting = [base for base in bases if base.form == drawn]
    base = rng.choices(fitting, [b.weight for b in fitting])[0]
    known = strategies(drawn)
    # Half of the cases know the form.
    name = rng.choice(list(_OWN[drawn] if rng.random() < 0.6 else known))
    case = Case(rng, copied(base, folder), secrets, bases)
    try:
        known[name](case)
    except Exception:  # the tools that damage refuse some damage themselves
        plain_bytes.flip(case)
        name = "flip"
    if rng.random() < 0.05:
        rng.choice(list(plain_bytes.MUTATIONS.values()))(case)
    return base, name, case.path


class Road:
    """One step after the other; `stage` tells how far a network came."""

    def __init__(self, path: Path) -> None:
        self.path, self.stage = path, "open"

    def walk(self) -> None:
        """Read, cut into tokens, put back, permute, write and read again. Raises whatever goes wrong."""
        graph = self._opened(self.path)
        self.stage = "tokenize"
        tokens = tokenize(graph, WIDTH)
        _require_ours(tokens.values)
        self.stage = "detokenize"
        back = detokenize(tokens, graph)
        for param in graph.params:
            _require_same(graph.tensors[param.key], back.tensors[param.key], param.key)
        self.stage = "groups"
        groups = permutation_groups(graph)
        perms = random_permutations(groups, torch.Generator().manual_seed(0))
        moved = permute(back, perms, groups)
        repr(graph.untouched), graph.coverage, graph.notes
        self._saved(moved)

    def _opened(self, path: Path) -> WeightGraph:
        graph = sane_onnx.sane_open(path) or BUILTIN.sane_open(path)
        if graph is None:
            raise SaneError(path, "no plugin reads it", "a known suffix is needed", "rename it")
        return graph

    def _saved(self, graph: WeightGraph) -> None:
        for name in ("out.onnx",) if graph.container == "onnx" else ("out.safetensors", "out.npz"):
            self.stage = f"save {name}"
            target = self.path.with_name(name)
            try:
                saved = sane_onnx.sane_save(graph, target, None, None) or BUILTIN.sane_save(
                    graph, target, None
                )
            except SaneError as refusal:
                require_plain(refusal)  # one form may know types that the other does not
                continue
            self.stage = f"reopen {name}"
            if saved is None:
                raise LostError(f"nobody writes {name}")
            if graph.size < 100_000:
                self._opened(target)


def run(path: Path, guard: Guard) -> tuple[str, str, BaseException | None]:
    """Lead a network along the road; return the outcome, the stage and the error."""
    road, error, peak = Road(path), None, Peak()
    try:
        with guard.watching(), warnings.catch_warnings():
            warnings.simplefilter("error")
            road.walk()
        outcome = "read"
    except SaneError as refusal:
        outcome, error = _judged(refusal)
    except HangError as late:
        outcome, error = "hang", late
    except BaseException as crash:  # Rust's panics are no `Exception`
        if isinstance(crash, KeyboardInterrupt | SystemExit):
            raise
        outcome, error = "memory" if _is_memory(crash) else "crash", crash
    if guard.escapes:
        return "escape", road.stage, LostError("; ".join(guard.escapes[:3]))
    if outcome in ("read", "refused") and peak.growth > GROWTH:
        return "memory", road.stage, LostError(f"{peak.growth / 2**20:.0f} MiB were used")
    return outcome, road.stage, error


def told(error: BaseException | None, root: Path) -> dict[str, str]:
    """Return an error's text, the innermost place in our code, and a digest of its way."""
    if error is None:
        return {}
    frames = traceback.extract_tb(error.__traceback__)
    way = [f"{Path(f.filename).name}:{f.name}" for f in frames]
    ours = [
        f
        for f in frames
        if Path(f.filename).is_relative_to(root) and "fuzz" not in Path(f.filename).parts
    ]
    where = f"{Path(ours[-1].filename).relative_to(root)}:{ours[-1].lineno}" if ours else ""
    digest = hashlib.sha256(f"{type(error).__name__} {way[-8:]}".encode()).hexdigest()[:8]
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return {"error": text, "where": where, "digest": digest}


def _judged(refusal: SaneError) -> tuple[str, BaseException | None]:
    """Return a refusal as it is, or as a crash where it hides one or is no sentence."""
    try:
        require_plain(refusal)
    except LostError as error:
        return "crash", error
    return "refused", None


def require_plain(refusal: SaneError) -> None:
    """Raise `LostError` where a refusal is no sentence on one line, or hides a failure."""
    text = str(refusal)
    if isinstance(refusal, PluginError) or "Traceback" in text:
        raise LostError(f"it hides a failure: {text}")
    if any(ord(letter) < 32 for letter in text) or len(text) > 10_000:
        raise LostError(f"{len(text)} letters are no sentence on one line: {text!r}")
    text.encode()


def _require_same(before: torch.Tensor, after: torch.Tensor, key: str) -> None:
    """Compare values; a NaN may lose what it carries on its way through float32."""
    ours, theirs = before.detach().double(), after.detach().double()
    if before.dtype != after.dtype or not torch.equal(ours.nan_to_num(7.5), theirs.nan_to_num(7.5)):
        raise LostError(f"{key!r} came back with other values")


def _require_ours(values: torch.Tensor) -> None:
    if bool((values == CANARY).any()):
        raise LostError("values of a file outside were read")


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "allocate memory" in str(error)
