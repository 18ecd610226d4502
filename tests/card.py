"""A stand-in for a CUDA card: its tensors say `cuda:0`, hold values, and mix as little as real ones.

PyTorch's fake tensors need no card and refuse operands of two devices, but hold no values, so that code which
reads one (`.item()`, `nonzero`) or indexes (without a CUDA build) cannot run on them. Here each operation is
asked of fake tensors on `cuda:0` first, which refuse it or tell where its result lies; the CPU then does it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


@contextmanager
def card() -> Iterator[None]:
    """Let this thread use `cuda:0` within the block, whether there is one or not."""
    # A module keeps its parameters when it moves, as on a real card.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), _Operations(), _Moves():
            patch.setattr(torch, "Generator", _Generator)
            patch.setattr(torch.cuda, "get_device_name", lambda *_: "a stand-in")
            patch.setattr(torch.cuda, "set_device", lambda *_: None)
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


class CardTensor(torch.Tensor):
    """A tensor on the card. For C++ it is a CPU tensor without memory; its values are another tensor's."""

    values: torch.Tensor
    device = property(lambda _: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> CardTensor:
        """Wrap values."""
        with torch.inference_mode(False):
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                values.shape,
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
            )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of the card, outside of it or in another thread")

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({self.values})"

    def tolist(self) -> Any:
        return self.values.tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()


class _Generator(torch.Generator):
    """A generator that may be the card's."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    device = property(lambda self: self.place)  # type: ignore[assignment]


class _Move(torch.autograd.Function):
    """A copy on the card or from it; gradients go the other way."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor, to_card: bool) -> torch.Tensor:
        with _cpu():
            return CardTensor(x.clone()) if to_card else x.values.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _move(gradient, not isinstance(gradient, CardTensor)), None


def _move(x: torch.Tensor, to_card: bool) -> torch.Tensor:
    return x if isinstance(x, CardTensor) == to_card else _Move.apply(x, to_card)


class _Moves(TorchFunctionMode):
    """What C++ does by a tensor's own device, for it the CPU: moves, and tensors that functions make."""

    is_within_card = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            return _to(*args, **kwargs)
        if func is torch.Tensor.cpu:
            return _move(args[0], False)
        if func is torch.Tensor.cuda:
            return _move(args[0], True)
        if func is torch.Tensor.type_as:
            return _to(*args)
        if func is torch.Tensor.pin_memory:
            assert not isinstance(args[0], CardTensor), "only CPU memory can be pinned"
            return args[0]
        if func is torch.Tensor.data.__get__ and isinstance(args[0], CardTensor):
            return CardTensor(args[0].values)
        if func is torch.Tensor.data.__set__ and isinstance(args[0], CardTensor):
            assert isinstance(args[1], CardTensor), "data of the card become data of the CPU"
            args[0].values = args[1].values
        is_within = any(isinstance(x, CardTensor) for x in _leaves((args, kwargs)))
        if kwargs.get("generator") is not None:
            is_made = "device" in kwargs and torch.device(kwargs["device"]).type == "cuda"
            _require_generator(kwargs["generator"], is_within or is_made)
        _Moves.is_within_card = is_within and "device" not in kwargs
        try:
            return func(*args, **kwargs)
        finally:
            _Moves.is_within_card = False


def _to(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Do `Tensor.to(device, dtype, ...)`, `Tensor.to(dtype, ...)` or `Tensor.to(other, ...)`."""
    kwargs.pop("non_blocking", None)
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    other = kwargs.pop("other", None)
    for argument in args:
        if isinstance(argument, torch.Tensor):
            other = argument
        elif isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, str | torch.device | int) and not isinstance(argument, bool):
            device = argument
    if other is not None:
        device, dtype = other.device, other.dtype
    if device is not None:
        x = _move(x, torch.device(device).type == "cuda")
    kwargs |= {} if dtype is None else {"dtype": dtype}
    return torch.Tensor.to(x, **kwargs) if kwargs else x


class _Operations(TorchDispatchMode):
    """Every operation, below autograd."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, flat = kwargs or {}, _leaves((args, kwargs))
        tensors = [x for x in flat if isinstance(x, torch.Tensor)]
        is_of_cpu = tensors and not any(isinstance(x, CardTensor) for x in tensors)  # `new_zeros`
        is_made = ("device" in kwargs or not tensors) and not is_of_cpu
        if is_made and _Moves.is_within_card and _is_called_by_torch():
            kwargs = {**kwargs, "device": CUDA}
            flat.append(CUDA)
        if not any(isinstance(x, CardTensor) or _is_card(x) for x in flat):
            with torch._C._DisableTorchDispatch():
                return func(*args, **kwargs)
        operands = (func, *(_kind(x) for x in flat))
        if operands not in _asked:
            _asked[operands] = _lies_on_card(func, args, kwargs)
        with _cpu():
            result = func(*_each(_on_cpu, args), **_each(_on_cpu, kwargs))
        if not _asked[operands]:
            return result
        known = {id(x.values): x for x in flat if isinstance(x, CardTensor)}  # written in place

        def wrap(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            return known[id(x)] if id(x) in known else CardTensor(x)

        return _each(wrap, result)


def _is_called_by_torch() -> bool:
    """Return whether C++ asks for an operation within a function, and not the code of a dispatch mode.

    What C++ makes for a tensor of the card lies there; what Python makes there lies on the CPU.
    """
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torch."):
        frame = frame.f_back
    return frame.f_code.co_name in ("__torch_function__", "__torch_dispatch__")


@contextmanager
def _cpu() -> Iterator[None]:
    """Compute with values, whatever modes are on; they must outlive `torch.inference_mode`."""
    with torch._C._DisableTorchDispatch(), torch.inference_mode(False):
        yield


def _each(do: Callable[[Any], Any], x: Any) -> Any:
    """Return arguments or results, lists in which may lie in lists, with something done to each."""
    if isinstance(x, dict):
        return {key: _each(do, value) for key, value in x.items()}
    if isinstance(x, list | tuple) and not isinstance(x, torch.Size):
        return type(x)([_each(do, y) for y in x])
    return do(x)


def _leaves(x: Any) -> list[Any]:
    found: list[Any] = []
    _each(found.append, x)
    return found


_asked: dict[
    tuple[Any, ...], list[bool] | None
] = {}  # what fake tensors said, by operation and operands


def _kind(x: Any) -> Any:
    """Return of an operand what decides where a result lies."""
    if isinstance(x, torch.Tensor):
        return x.device, x.ndim == 0, x.dtype == torch.bool
    return x if isinstance(x, torch.device) else type(x)


def _is_card(x: Any) -> bool:
    return isinstance(x, torch.device) and x.type == "cuda"


def _on_cpu(x: Any) -> Any:
    if isinstance(x, CardTensor):
        return x.values
    return _CPU if isinstance(x, torch.device) else x


def _require_generator(generator: torch.Generator, is_on_card: bool) -> None:
    if (generator.device.type == "cuda") != is_on_card:
        raise RuntimeError(f"a generator of {generator.device} draws for another device")


def _require_index(func: Any, args: Any) -> None:
    """Raise `RuntimeError` for an index on the card of a tensor elsewhere, which fake tensors let pass."""
    is_of_cpu = func.overloadpacket in _INDEXED and not isinstance(args[0], CardTensor)
    if is_of_cpu and any(isinstance(x, CardTensor) for x in args[1]):
        raise RuntimeError("indices should be on cpu or on the device of the indexed tensor")


def _lies_on_card(func: Any, args: Any, kwargs: Any) -> bool:
    """Ask fake tensors whether results lie on the card. Raises `RuntimeError` where operands do not mix."""

    def fake(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)

    _require_index(func, args)
    try:
        results = _leaves(func(*_each(fake, args), **_each(fake, kwargs)))
    except (DataDependentOutputException, DynamicOutputShapeException):
        return _require_one_device(_leaves((args, kwargs)))
    except RuntimeError as error:
        if "not linked with support for cuda" not in str(error):  # of builds without CUDA
            raise
        return _require_one_device(_leaves((args, kwargs)))
    return any(isinstance(x, torch.Tensor) and x.device.type == "cuda" for x in results)


def _require_one_device(operands: Sequence[Any]) -> bool:
    """Raise `RuntimeError` for tensors of two devices; single numbers of the CPU go with any."""
    tensors = [x for x in operands if isinstance(x, torch.Tensor)]
    devices = {x.device for x in tensors if x.ndim or isinstance(x, CardTensor)}
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {devices}")
    return CUDA in devices
