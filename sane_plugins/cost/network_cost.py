"""What running a network takes, and what is asked about it."""

from __future__ import annotations

from dataclasses import dataclass

from sane_plugins.arguments import require_field_types, require_ranges
from sane_plugins.errors import UsageError

CLOCKS = ("wall", "cpu")
_MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """How latency is measured: `warmup` passes, then passes for `seconds`, longer while they differ.

    `clock`: `wall` is the time that passes, `cpu` that of this process's processors alone, which other
    programs hardly move. `threads`: of torch on the CPU; None leaves its own number.
    """

    warmup: int = 3
    seconds: float = 0.5
    device: str = "cpu"
    clock: str = "wall"
    threads: int | None = None

    def __post_init__(self) -> None:
        require_field_types(self)
        require_ranges(self, {"warmup": (0, 10_000), "seconds": (0.001, 3_600)})
        if self.threads is not None:
            require_ranges(self, {"threads": (1, 4096)})
        if self.clock not in CLOCKS:
            raise UsageError(
                "LatencyOptions, clock",
                f"'{self.clock}' was given",
                f"one of {', '.join(CLOCKS)} is needed",
                "check the name",
            )


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """The input that is run through a network: `batch` images of `size` x `size` pixels.

    `size` None: 224, or what the network takes where it does not take that. `shape` gives one input whole,
    without its batch, such as (3, 224, 224), and `size` is then not used. `dims` are sizes by the names that
    an ONNX file gives those that it leaves open. `latency` None: it is not measured.
    """

    size: int | None = None
    batch: int = 1
    shape: tuple[int, ...] | None = None
    dims: tuple[tuple[str, int], ...] = ()
    latency: LatencyOptions | None = None

    def __post_init__(self) -> None:
        require_field_types(self)
        require_ranges(self, {"batch": (1, _MOST)})
        sizes = () if self.size is None else (self.size,)
        for value in (*sizes, *(self.shape or ()), *(number for _, number in self.dims)):
            if not 1 <= value <= _MOST:
                raise UsageError(
                    "CostOptions, size",
                    f"{value} was given",
                    f"lengths lie between 1 and {_MOST:,}",
                    "correct it",
                )


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds of a pass, measured: the median, and the 5 % and 95 % quantiles of `passes`."""

    seconds: float
    interval: tuple[float, float]
    passes: int
    device: str
    threads: int
    clock: str


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """What one pass of inference takes, from shapes alone (docs/explanation/sane.md, section 17.1).

    `parameters` are values of weights, without statistics; `macs` multiply-accumulates, of which
    `grouped_macs` are of convolutions in groups; `activations` the values that convolutions, matrix products
    and attention's products give; `layers` those with weights. `operations` are those that make or change
    tensors, and `moved_bytes` what they read and write. `weight_bytes` holds statistics and tables too;
    `peak_bytes` adds the most that tensors between operations hold at one time, the input among them. None
    where it is not known, and `notes` say why. `inputs` are the shapes that it was counted for.
    """

    inputs: tuple[tuple[int, ...], ...]
    parameters: int
    macs: int
    activations: int
    layers: int
    weight_bytes: int
    peak_bytes: int | None
    grouped_macs: int = 0
    operations: int = 0
    moved_bytes: int | None = None
    notes: tuple[str, ...] = ()
    latency: Latency | None = None
