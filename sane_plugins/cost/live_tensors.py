"""Follow which tensors live at one time, and what each operation reads and writes.

A tensor lives as long as its storage, as in torch.distributed._tools.mem_tracker, which follows training.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

_ATEN = torch.ops.aten
_OURS = (
    "aten",
    "prim",
    "prims",
)  # namespaces of operations that torch's counter knows or may pass over
# Of torch's own operations, these multiply and add, and their MACs follow no formula here.
_NO_FORMULA = ("_trilinear", "_cdist", "_fft", "linalg", "_linalg", "cholesky", "triangular_solve")
_GROUPS = 8  # place of an argument of a convolution


class LiveTensors(TorchDispatchMode):
    """A context that counts bytes of living tensors, values that products give, and operations.

    `weights` are counted apart, and live throughout. Entered before torch's FLOP counter, it sees what that
    one makes of an operation.
    """

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = self.weight_bytes = self.activations = self.grouped_macs = 0
        self.operations = self.moved_bytes = 0
        self.uncounted: set[str] = set()
        self._living = 0
        self._known = WeakIdKeyDictionary()
        for tensor in weights:
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                self.weight_bytes += storage.nbytes()

    def hold(self, tensors: Iterable[torch.Tensor]) -> int:
        """Count tensors that have storages of their own, until these are freed; return how many are new."""
        new = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                new += 1
                self._living += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self._living)
        return new

    def _free(self, nbytes: int) -> None:
        self._living -= nbytes

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operation, and count what it reads, makes and changes."""
        result = func(*args, **(kwargs or {}))
        outputs = [*_tensors(result)]
        if self.hold(outputs) or func._schema.is_mutable:
            self.operations += 1
            read = _tensors((args, kwargs))
            self.moved_bytes += sum(x.numel() * x.itemsize for x in (*read, *outputs))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.activations += outputs[0].numel()
            if packet is _ATEN.convolution and args[_GROUPS] > 1:
                self.grouped_macs += _convolution_macs(args, outputs[0])
        elif func.namespace not in _OURS or func._schema.name.partition("::")[2].startswith(
            _NO_FORMULA
        ):
            self.uncounted.add(func._schema.name)
        return result


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _convolution_macs(args: Sequence[Any], output: torch.Tensor) -> int:
    image, weight, is_transposed = args[0], args[1], args[6]
    return int((image if is_transposed else output).numel() * prod(weight.shape[1:]))
