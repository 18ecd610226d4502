"""Random streams, threads and devices: the state that the whole process shares.

Light at import: commands that ask for a device must show their help at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from hashlib import sha256
from threading import Lock, RLock, Thread, local
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sane_plugins.errors import UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_SINGLE_THREAD_MAX_FLOPS = 2e7
# Overloads of operations such as `randn` that take a generator, by those that take none.
_WITH_GENERATOR = {"default": "generator", "low": "low_generator"}
_seeding = RLock()  # of torch's global generators, and of what builds networks with them
_thread_numbers = Lock()  # of torch's setting, which two calls change


def random_stream(seed: int, *labels: object) -> torch.Generator:
    """Return a random generator of its own for a seed and labels, independent of all others."""
    import torch

    text = "/".join(map(str, (seed, *labels))).encode(errors="surrogatepass")
    return torch.Generator().manual_seed(int.from_bytes(sha256(text).digest()[:7], "big"))


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Seed torch's global generators from `rng` within the block; their states are restored afterwards.

    The generators belong to the whole process: one thread at a time is in such a block, and numbers that
    the program draws in other threads meanwhile are taken from the same stream. To build networks with:
    their constructors may seed, save and restore the generator themselves.
    """
    import torch

    seed = int(torch.randint(2**62, (), generator=rng))
    gpus = [*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    with _seeding, torch.random.fork_rng(devices=gpus):
        # `torch.manual_seed` would also seed GPUs that the program has not begun to use, for good.
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed_all(seed)
        yield


class Draws(Protocol):
    """A context manager, usable again and again, that knows whether anything was drawn in it."""

    has_drawn: bool

    def __enter__(self) -> object: ...

    def __exit__(self, *error: Any) -> None: ...


def drawing_from(generator: torch.Generator) -> Draws:
    """Let this thread's torch functions draw from `generator` where none is given, instead of the global one.

    The numbers are those that the global generator would give from the same state; neither it nor
    other threads notice.
    """
    return _private_draws()(generator)


@cache
def _private_draws() -> Callable[[torch.Generator], Draws]:
    """Return the mode of `drawing_from`; a class of torch's, so it is made when torch is in use."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

    class PrivateDraws(TorchDispatchMode):
        """Gives a generator to every operation that draws random numbers."""

        supports_higher_order_operators = True

        def __init__(self, generator: torch.Generator) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.has_drawn = False
            self._generators = {"cpu": generator}

        # The base notes in variables of the process whether any mode is on; threads would mix these up.
        def __enter__(self) -> PrivateDraws:
            _push_mode(self)
            return self

        def __exit__(self, *_: object) -> None:
            _pop_mode()

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            """Do without torch's compiler, which takes seconds to import."""
            return False

        def __torch_dispatch__(
            self,
            func: Any,
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            kwargs = kwargs or {}
            if not _is_random(func) or any(
                isinstance(value, torch.Generator) for value in (*args, *kwargs.values())
            ):
                return func(*args, **kwargs)
            self.has_drawn = True
            device = _device_of(args, kwargs)
            if device.type not in ("cpu", "cuda"):
                return func(*args, **kwargs)
            generator = self._generator(device)
            if operation := _with_generator(func):
                return operation(*args, **{**kwargs, "generator": generator})
            return _draw_as_global(partial(func, *args, **kwargs), generator, device)

        def _generator(self, device: torch.device) -> torch.Generator:
            if str(device) not in self._generators:
                seed = self._generators["cpu"].initial_seed()
                self._generators[str(device)] = torch.Generator(device).manual_seed(seed)
            return self._generators[str(device)]

    return PrivateDraws


@lru_cache(maxsize=4096)
def _is_random(func: Any) -> bool:
    """Return whether an operation of torch's draws random numbers where no generator is given."""
    import torch

    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


def _device_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Return the device that an operation draws on: that of its result, or of its first tensor."""
    import torch

    if (device := kwargs.get("device")) is not None:
        return torch.device(device)
    return next((x.device for x in args if isinstance(x, torch.Tensor)), torch.device("cpu"))


def _with_generator(func: Any) -> Any:
    """Return the overload of an operation that takes a generator, or None."""
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func
    name = _WITH_GENERATOR.get(func._overloadname, "")
    return getattr(func.overloadpacket, name, None) if name else None


def _draw_as_global(draw: Callable[[], T], generator: torch.Generator, device: torch.device) -> T:
    """Draw with an operation that takes no generator: the global one has this one's state meanwhile."""
    import torch

    index = device.index or 0
    default = (
        torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[index]
    )
    with _seeding:
        saved = default.get_state()
        default.set_state(generator.get_state())
        try:
            return draw()
        finally:
            generator.set_state(default.get_state())
            default.set_state(saved)


class _Silence(local):
    """Whether the calling thread wants no warnings."""

    is_on = False


_silence = _Silence()


class _AnyWhileSilent(type):
    """Whose classes have every warning as a subclass, as long as the calling thread wants none."""

    def __subclasscheck__(cls, _: type) -> bool:
        return _silence.is_on


class _UnwantedWarning(Warning, metaclass=_AnyWhileSilent):
    """The category of a filter of one thread: others, and libraries that copy it, see an ordinary filter."""


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Python's warnings in this thread within the block; `warnings.catch_warnings` would in all.

    One filter is put in front of those of the process, and stays: it matches in such blocks only.
    """
    before, _silence.is_on = _silence.is_on, True
    first = next(iter(warnings.filters), None)
    if first is None or first[2] is not _UnwantedWarning:
        warnings.simplefilter("ignore", _UnwantedWarning)
    try:
        yield
    finally:
        _silence.is_on = before


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads in the calling thread, within the block."""
    import torch

    with _thread_numbers:  # a thread that begins while another sets its number would take that one
        previous = torch.get_num_threads()
    set_threads(count)
    try:
        yield
    finally:
        set_threads(previous)


def set_threads(count: int) -> None:
    """Let torch compute with `count` threads in the calling thread; others keep their number.

    torch sets the number of the calling thread and the one that later threads begin with; a thread that
    begins now knows the latter and puts it back.
    """
    import torch

    with _thread_numbers:
        if count == torch.get_num_threads():
            return
        at_begin = _in_new_thread(torch.get_num_threads)
        torch.set_num_threads(count)
        _in_new_thread(partial(torch.set_num_threads, at_begin))


def _in_new_thread(function: Callable[[], T]) -> T:
    results: list[T] = []
    thread = Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@contextmanager
def threads_for(flops: int) -> Iterator[None]:
    """Use one thread for a network whose forward pass takes few operations: it is too small to split.

    On a busy machine the threads of a small step wait for each other longer than they work.
    """
    import torch

    with threads(1 if flops < _SINGLE_THREAD_MAX_FLOPS else torch.get_num_threads()):
        yield


def require_device(device: str) -> None:
    """Raise `UsageError` for a device that torch cannot use here."""
    import torch

    try:
        torch.zeros(1, device=device).cpu()  # which the device `meta` refuses
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {device}",
            f"it cannot be used ({str(error).partition(chr(10))[0]})",
            "a device of this machine is needed",
            "leave it out to use the CPU",
        ) from error
