"""Constants that are no plain tensors: filled, sparse, or lists of numbers in a node."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Protocol

import torch
from onnx import AttributeProto, NodeProto, SparseTensorProto, helper

from sane_onnx.tensors import StoredTensor, encoded, fill
from sane_plugins.errors import SourceError

# A file of a hundred bytes may ask for a terabyte.
LARGEST = 2**31


class Source(Protocol):
    """Values of one constant of a model: where they lie decides how they are read and written."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the values."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Return their type; None for one that torch lacks."""

    def require(self) -> None:
        """Raise `SourceError` where the values cannot be read."""

    def read(self) -> torch.Tensor:
        """Return the values. Raises `SourceError` where they are broken."""

    def write(self, value: torch.Tensor) -> None:
        """Replace the values. Raises `SourceError` where this form cannot hold them."""


class Filled:
    """What a ConstantOfShape node makes; other values turn it into a Constant node."""

    def __init__(
        self, node: NodeProto, shape: tuple[int, ...], value: StoredTensor, place: str
    ) -> None:
        self._node, self._value = node, value
        self.shape, self.dtype, self._place = shape, value.dtype, f"{place}, {node.output[0]!r}"

    def require(self) -> None:
        """Raise `SourceError` for a tensor beyond all measure."""
        require_small(self.shape, self.dtype, self._place)
        self._value.require()

    def read(self) -> torch.Tensor:
        """Return the one value, expanded: it takes no memory."""
        self.require()
        return self._value.read().reshape(()).expand(self.shape)

    def write(self, value: torch.Tensor) -> None:
        """Keep the node where all values are equal; otherwise make it a Constant."""
        del self._node.attribute[:]
        is_even = value.numel() and bool((value == value.reshape(-1)[0]).all())
        dims = [1] if is_even else list(self.shape)
        tensor = helper.make_tensor("value", self._value.tensor.data_type, [0], [])
        tensor.dims[:] = dims
        stored = StoredTensor(tensor, self._place, self._value.files)
        stored.write(value.reshape(-1)[:1] if is_even else value)
        self._node.attribute.append(helper.make_attribute("value", tensor))
        if not is_even:
            self._node.op_type = "Constant"
            del self._node.input[:]


class Sparse:
    """A sparse tensor, read as a dense one; zeros of the new values are left out again."""

    def __init__(
        self, sparse: SparseTensorProto, make: Callable[..., StoredTensor], place: str
    ) -> None:
        self._values, self._indices = make(sparse.values), make(sparse.indices)
        self._place = f"{place}, {sparse.values.name!r}"
        self.shape, self.dtype = tuple(sparse.dims), self._values.dtype

    def require(self) -> None:
        """Raise `SourceError` where the places do not fit the shape or the dense form is too large."""
        require_small(self.shape, self.dtype, self._place)
        flat = self._flat()
        if len(flat) != self._values.size or not bool(
            ((flat >= 0) & (flat < prod(self.shape))).all()
        ):
            raise SourceError(
                self._place,
                "the places of its values do not fit its shape",
                "one place inside the tensor is needed for each value",
                "export the file again",
            )

    def read(self) -> torch.Tensor:
        """Return the dense tensor."""
        self.require()
        dense = torch.zeros(prod(self.shape), dtype=self.dtype)
        dense[self._flat()] = self._values.read().reshape(-1)
        return dense.reshape(self.shape)

    def write(self, value: torch.Tensor) -> None:
        """Write the values at the old places, where all others are zero, or at new places."""
        flat, places = value.reshape(-1), self._flat()
        rest = flat.clone()
        rest[places] = 0
        if rest.any():
            places = flat.nonzero().reshape(-1)
            at = [x.tolist() for x in torch.unravel_index(places, self.shape)]
            is_flat = len(self._indices.shape) == 1
            grid = places if is_flat else torch.tensor(at, dtype=torch.int64).T
            _resize(self._indices, grid)
        _resize(self._values, flat[places])

    def _flat(self) -> torch.Tensor:
        """Return each value's place in the flattened tensor."""
        found = self._indices.read().to(torch.int64)
        if found.ndim < 2:
            return found.reshape(-1)
        steps = [prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        if found.shape[1] != len(steps):
            return found.new_full((len(found),), -1)
        return (found * torch.tensor(steps)).sum(1)


class Numbers:
    """A list of numbers in a node's attribute, such as a linear classifier's coefficients."""

    dtype = torch.float32

    def __init__(self, attribute: AttributeProto, shape: tuple[int, ...]) -> None:
        self._attribute, self.shape = attribute, shape

    def require(self) -> None:
        """Numbers in a list are always whole."""

    def read(self) -> torch.Tensor:
        """Return the numbers."""
        return torch.tensor(list(self._attribute.floats)).reshape(self.shape)

    def write(self, value: torch.Tensor) -> None:
        """Replace the numbers."""
        self._attribute.floats[:] = value.reshape(-1).tolist()


def require_small(shape: tuple[int, ...], dtype: torch.dtype | None, place: str) -> None:
    """Raise `SourceError` where a tensor that the file does not hold in full would be too large."""
    needed = prod(shape) * (dtype.itemsize if dtype else 1)
    if min(shape, default=0) < 0 or needed > LARGEST:
        raise SourceError(
            place,
            f"a tensor of shape {shape} is to be made from a few numbers",
            f"at most {LARGEST >> 30} GiB are made so",
            "export the network with its weights",
        )


def _resize(stored: StoredTensor, value: torch.Tensor) -> None:
    stored.tensor.dims[:] = list(value.shape)
    stored.shape = tuple(value.shape)
    fill(stored.tensor, encoded(stored.tensor, value))
