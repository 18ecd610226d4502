"""Fingerprints of networks: of each tensor, what no name, place, channel order or precision changes.

The method: docs/explanation/sane.md, section 20.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from sane_plugins.display import ShortRepr
from sane_plugins.fingerprints.balanced import Balanced
from sane_plugins.fingerprints.channel_descriptors import channel_descriptors
from sane_plugins.fingerprints.distances import nearest_other
from sane_plugins.fingerprints.projection import projection
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.weights import Param, WeightGraph, widened

Array = npt.NDArray[np.float32]
MAX_CHANNELS = 64
QUANTILES = 33
MOMENTS = 3
_LEAST_VARIANCE = 1e-10  # as a part of the mean square


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TensorFingerprint(ShortRepr):
    """What is kept of one tensor.

    `shape` is (output channels, input channels, *places) of a matrix, (channels,) of a vector. `quantiles`
    (33,) of the values, and their `moments` (3,): mean, mean square and kurtosis. Of a matrix also:
    descriptors of at most 64 channels, `outputs` (R, D) and `inputs` (C, D), those most unlike the others
    first, with their numbers in the tensor, and `sketch` (256,), the projection in the tensor's own order;
    of a vector all are empty.
    """

    key: str
    layer: str
    role: str
    shape: tuple[int, ...]
    quantiles: Array
    moments: Array
    outputs: Array
    output_channels: npt.NDArray[np.int32]
    inputs: Array
    input_channels: npt.NDArray[np.int32]
    sketch: Array

    @property
    def size(self) -> int:
        """Return the number of values."""
        return prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Return whether the tensor has output and input channels."""
        return len(self.shape) > 1

    @cached_property
    def outputs_apart(self) -> Array:
        """Return the distance (R,) of each output channel to the nearest other one."""
        return nearest_other(self.outputs)

    @cached_property
    def inputs_apart(self) -> Array:
        """Return the distance (C,) of each input channel to the nearest other one."""
        return nearest_other(self.inputs)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NetworkFingerprint(ShortRepr):
    """The fingerprints of a network's tensors, in network order."""

    source: str
    tensors: tuple[TensorFingerprint, ...]

    @property
    def size(self) -> int:
        """Return the number of values in all tensors."""
        return sum(tensor.size for tensor in self.tensors)


def fingerprint(graph: WeightGraph, report: Report = silent) -> NetworkFingerprint:
    """Return the fingerprint of a network. Raises `SourceError` if a weight is not finite.

    One tensor is read at a time.
    """
    graph = graph.require_finite()
    layers = {param.key: layer.name for layer in reversed(graph.layers) for param in layer.params}
    params = [param for param in graph.params if param.size]
    tensors = []
    for i, param in enumerate(params):
        tensors.append(_of_tensor(param, layers[param.key], graph.tensors[param.key]))
        report(Progress(job="fingerprint", done=i + 1, total=len(params)))
    return NetworkFingerprint(source=graph.source, tensors=tuple(tensors))


def _of_tensor(param: Param, layer: str, tensor: torch.Tensor) -> TensorFingerprint:
    tensor = widened(tensor.detach())
    shape = tuple(tensor.shape)
    none = np.zeros((0, 0), np.float32)
    outputs, inputs, sketch = none, none, none.ravel()
    if len(shape) > 1:
        balanced = Balanced.of(tensor, param.axis)
        shape = tuple(balanced.tensor.shape)
        outputs, inputs = channel_descriptors(balanced)
        sketch = projection(balanced)
    rows, columns = _most_unlike(outputs), _most_unlike(inputs)
    return TensorFingerprint(
        key=param.key,
        layer=layer,
        role=param.role,
        shape=shape if shape else (1,),
        quantiles=_quantiles(tensor),
        moments=_moments(tensor),
        outputs=outputs[rows],
        output_channels=rows,
        inputs=inputs[columns],
        input_channels=columns,
        sketch=sketch,
    )


def _quantiles(tensor: torch.Tensor) -> Array:
    values = np.sort(tensor.to("cpu", torch.float32).numpy(), axis=None)
    places = np.linspace(0, len(values) - 1, QUANTILES).round().astype(int)
    return np.asarray(values[places], np.float32)


def _moments(tensor: torch.Tensor) -> Array:
    """Return mean, mean square, and kurtosis (0 where all values are equal)."""
    values = tensor.to("cpu", torch.float32)
    mean, square = float(values.mean()), float(values.square().mean())
    variance = square - mean * mean
    fourth = float((values - mean).square_().square_().mean())
    kurtosis = fourth / variance**2 if variance > _LEAST_VARIANCE * square else 0.0
    return np.array([mean, square, kurtosis], np.float32)


def _most_unlike(descriptors: Array) -> npt.NDArray[np.int32]:
    """Return the numbers of the channels farthest from the median of all, the farthest first."""
    if not len(descriptors):
        return np.zeros(0, np.int32)
    distance = np.square(descriptors - np.median(descriptors, 0)).sum(1)
    return np.argsort(-distance, kind="stable")[:MAX_CHANNELS].astype(np.int32)
