"""Measure how long a pass of inference takes on a device of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import Timer

from sane_plugins.cost.input_shapes import input_dtype
from sane_plugins.cost.network_cost import Latency, LatencyOptions
from sane_plugins.errors import SourceError, UsageError, first_line
from sane_plugins.runtime import without_warnings

_QUANTILES = (0.05, 0.95)
_MAX_RATIO = 10  # of the longest to the shortest time that passes are repeated for
_CALM = 0.1  # of the median: a quartile range that ends repeating


def measure_latency(
    module: nn.Module,
    inputs: Sequence[tuple[int, ...]],
    options: LatencyOptions,
    place: str = "the network",
) -> Latency:
    """Time passes over inputs of these shapes; the module is moved to the device, and put in evaluation mode.

    torch's own timer waits for GPUs. Raises `SourceError` where a pass fails.
    """
    if options.clock == "cpu" and torch.device(options.device).type != "cpu":
        raise UsageError(
            "--clock cpu",
            f"the network runs on {options.device}",
            "that clock counts processor time of this process",
            "leave out --clock",
        )
    threads = options.threads or torch.get_num_threads()
    own_clock: dict[str, Any] = {"timer": process_time} if options.clock == "cpu" else {}
    try:
        with without_warnings(), torch.inference_mode():
            module = module.eval().to(options.device)
            images = [_input(shape, module).to(options.device) for shape in inputs]
            timer = Timer(
                "module(*images)",
                globals={"module": module, "images": images},
                num_threads=threads,
                **own_clock,
            )
            if options.warmup:
                timer.timeit(options.warmup)
            measured = timer.adaptive_autorange(
                _CALM, min_run_time=options.seconds, max_run_time=_MAX_RATIO * options.seconds
            )
    except Exception as error:  # any code runs in a forward
        raise SourceError(
            place,
            f"a pass on {options.device} fails ({type(error).__name__}: {first_line(error)})",
            "it must run to be timed",
            "leave out --latency, or check --device",
        ) from error
    low, high = np.quantile(measured.times, _QUANTILES)
    return Latency(
        seconds=float(measured.median),
        interval=(float(low), float(high)),
        passes=len(measured.times) * measured.number_per_run,
        device=_device_name(options.device),
        threads=threads,
        clock=options.clock,
    )


def _input(shape: tuple[int, ...], module: nn.Module) -> torch.Tensor:
    dtype = input_dtype(module)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _device_name(device: str) -> str:
    """Return a device as records name it; of a GPU, with its model."""
    if torch.device(device).type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device
