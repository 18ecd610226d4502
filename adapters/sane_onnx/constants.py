"""Constants not stored as plain tensors: ConstantOfShape, sparse tensors, and floats attributes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Protocol

import torch
from onnx import AttributeProto, NodeProto, SparseTensorProto, helper

from sane_onnx.model_file.limits import REPEATED_BYTES
from sane_onnx.tensors import StoredTensor, set_bytes, to_bytes, type_name
from sane_plugins.errors import SourceError


class Constant(Protocol):
    """A constant of a model; its form of storage decides how it is read and written."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the values."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Return their dtype; None for a type that torch lacks."""

    def require(self) -> None:
        """Raise `SourceError` where the values cannot be read."""

    def read(self) -> torch.Tensor:
        """Return the values. Raises `SourceError` where they are broken."""

    def write(self, value: torch.Tensor) -> None:
        """Replace the values. Raises `SourceError` where this form cannot hold them."""


class ConstantOfShape:
    """Output of a ConstantOfShape node, which becomes a Constant node when its values differ."""

    def __init__(
        self, node: NodeProto, shape: tuple[int, ...], value: StoredTensor, place: str
    ) -> None:
        self._node, self._value = node, value
        self.shape, self.dtype, self._place = shape, value.dtype, f"{place}, {node.output[0]!r}"

    def require(self) -> None:
        """Raise `SourceError` where the tensor is too large, or there is not one value for all of it."""
        require_size(self.shape, self.dtype, REPEATED_BYTES, self._place)
        self._value.require()
        if self._value.size != 1:
            raise SourceError(
                self._place,
                f"it repeats {self._value.size} values",
                "ConstantOfShape repeats one",
                "export the file again",
            )

    def read(self) -> torch.Tensor:
        """Return the value, expanded to the shape without allocating memory."""
        self.require()
        return self._value.read().reshape(()).expand(self.shape)

    def write(self, value: torch.Tensor) -> None:
        """Keep the node where all values are equal; otherwise make it a Constant."""
        del self._node.attribute[:]
        is_uniform = value.numel() and bool((value == value.reshape(-1)[0]).all())
        dims = [1] if is_uniform else list(self.shape)
        tensor = helper.make_tensor("value", self._value.tensor.data_type, [0], [])
        tensor.dims[:] = dims
        stored = StoredTensor(tensor, self._place, self._value.files)
        stored.write(value.reshape(-1)[:1] if is_uniform else value)
        self._node.attribute.append(helper.make_attribute("value", tensor))
        if not is_uniform:
            self._node.op_type = "Constant"
            del self._node.input[:]


class SparseConstant:
    """A sparse tensor (COO), read as a dense one of at most `most_bytes`, and written as a sparse one."""

    def __init__(
        self,
        sparse: SparseTensorProto,
        make: Callable[..., StoredTensor],
        place: str,
        most_bytes: int,
    ) -> None:
        self._values, self._indices = make(sparse.values), make(sparse.indices)
        self._place, self._most_bytes = f"{place}, {sparse.values.name!r}", most_bytes
        self.shape, self.dtype = tuple(sparse.dims), self._values.dtype

    def require(self) -> None:
        """Raise `SourceError` where the dense form is too large or indices do not fit the shape."""
        require_size(self.shape, self.dtype, self._most_bytes, self._place)
        if self._indices.dtype != torch.int64:
            raise SourceError(
                self._place,
                f"the places of its values are of type {type_name(self._indices.tensor)}",
                "INT64 is needed",
                "export the file again",
            )
        flat = self._flat_indices()
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
        dense[self._flat_indices()] = self._values.read().reshape(-1)
        return dense.reshape(self.shape)

    def write(self, value: torch.Tensor) -> None:
        """Write the values at the old indices if all others are zero, otherwise with new indices."""
        flat, indices = value.reshape(-1), self._flat_indices()
        rest = flat.clone()
        rest[indices] = 0
        if rest.any():
            indices = flat.nonzero().reshape(-1)
            coordinates = [x.tolist() for x in torch.unravel_index(indices, self.shape)]
            is_flat = len(self._indices.shape) == 1
            grid = indices if is_flat else torch.tensor(coordinates, dtype=torch.int64).T
            _resize(self._indices, grid)
        _resize(self._values, flat[indices])

    def _flat_indices(self) -> torch.Tensor:
        """Return each value's index in the flattened tensor."""
        indices = self._indices.read()
        if indices.ndim < 2:
            return indices.reshape(-1)
        strides = [prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        if indices.shape[1] != len(strides):
            return indices.new_full((len(indices),), -1)
        return (indices * torch.tensor(strides)).sum(1)


class FloatsAttribute:
    """A floats attribute of a node, such as a linear classifier's coefficients."""

    dtype = torch.float32

    def __init__(self, attribute: AttributeProto, shape: tuple[int, ...]) -> None:
        self._attribute, self.shape = attribute, shape

    def require(self) -> None:
        """A list of floats is always complete."""

    def read(self) -> torch.Tensor:
        """Return the numbers."""
        return torch.tensor(list(self._attribute.floats)).reshape(self.shape)

    def write(self, value: torch.Tensor) -> None:
        """Replace the numbers."""
        self._attribute.floats[:] = value.reshape(-1).tolist()


def require_size(shape: tuple[int, ...], dtype: torch.dtype | None, most: int, place: str) -> None:
    """Raise `SourceError` where a tensor that the file does not hold in full would be too large."""
    if prod(shape) * (dtype or torch.float32).itemsize > most:
        raise SourceError(
            place,
            f"a tensor of shape {shape} is to be made from a few numbers",
            f"at most {most >> 20} MiB are made so",
            "export the network with its weights",
        )


def _resize(stored: StoredTensor, value: torch.Tensor) -> None:
    stored.tensor.dims[:] = list(value.shape)
    stored.shape = tuple(value.shape)
    set_bytes(stored.tensor, to_bytes(stored.tensor, value))
