"""A pickle machine that makes inert records: nothing is imported or called, whatever the pickle says.

Python's own `pickle.Unpickler` calls what a pickle names. This one has no way to: a class or a function is
its name, an object is what it was made of.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any

STEPS = 3_000_000  # opcodes of one pickle
FREE_STEPS = 500_000  # however small the file is; more need
BYTES_PER_STEP = 16  # of the file each: a tensor takes some forty steps, and a KiB on average

_FEW = 16  # arguments cost nothing of their own
_MARK = object()
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # of Python 2
_MAPPINGS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
_LISTS = {"builtins.set", "builtins.frozenset", "builtins.list", "builtins.tuple"}
_INTEGERS = range(-(2**63), 2**63)


class PickleLimitError(Exception):
    """A pickle exceeds a limit."""


class Global:
    """The name of a class or function."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Inert:
    """A stand-in for an object: who was asked to make it, of what, and what it was given afterwards.

    `name` is that of its class or function; `items` are pairs, `parts` are what a list or a set would hold.
    """

    __slots__ = ("args", "items", "name", "parts", "state")

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name, self.args = name, args
        self.items: list[tuple[Any, Any]] = []
        self.parts: list[Any] = []
        self.state: Any = None


def step_limit(nbytes: int) -> int:
    """Return how many opcodes the pickle of a file of that size may have."""
    return min(STEPS, FREE_STEPS + nbytes // BYTES_PER_STEP)


class InertUnpickler:
    """One pickle's `content`: plain values, lists, dicts, and inert records, all of which `made` lists.

    `names` holds the classes and functions that it names; `left` steps of `most` were not needed. Sets are
    read as lists. Keys of a dict that are no text or whole number are replaced by a text. The stream is left
    behind the pickle.
    """

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self.made: list[Inert] = []
        self.names: dict[str, Global] = {}
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}
        self.left = most
        self.content = self._run(stream)

    def persistent_load(self, pid: Any) -> Any:
        """Return what a persistent id refers to; a pickle by itself has none."""
        raise ValueError(f"a persistent id of {type(pid).__name__}")

    def _run(self, stream: IO[bytes]) -> Any:
        stack = self._stack
        for op, argument, _ in pickletools.genops(stream):
            self._spend(1)
            name = op.name
            if name in _ARGUMENTS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            elif name in _PUTS:
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
            elif name in _GETS:
                stack.append(self._memo[argument])
            elif name == "STOP":
                return stack.pop()
            else:
                _ACTIONS[name](self, argument)
        raise ValueError("no end")

    def _spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise PickleLimitError("too many steps")

    def _pop_mark(self) -> list[Any]:
        """Pop what lies above the last mark, and the mark."""
        stack = self._stack
        place = len(stack) - 1
        while stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("no mark")
        items = stack[place + 1 :]
        del stack[place:]
        return items

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count:
            raise ValueError("an empty stack")
        del self._stack[-count:]
        return items

    def _find(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("no name")
        full = f"{_MODULES.get(module, module)}.{name}"
        return self.names.setdefault(full, Global(full))

    def _make(self, maker: Any, args: Any) -> Any:
        """Return what stands for a call; mappings and lists of Python are made."""
        args = tuple(args) if isinstance(args, list | tuple) else (args,)
        self._spend(len(args) // _FEW)  # one tuple may be the arguments of many calls
        name = maker.name if isinstance(maker, Global) else ""
        if name in _MAPPINGS:
            return self._mapping(args)
        if name in _LISTS:
            return args[0] if args and isinstance(args[0], list) else []
        record = Inert(name, args if isinstance(maker, Global) else (maker, *args))
        self.made.append(record)
        return record

    def _mapping(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        """Return the mapping of a list of pairs, which Python 2 wrote, or an empty one."""
        pairs = args[0] if args and isinstance(args[0], list) else []
        self._spend(len(pairs))
        return {_key(pair[0], i): pair[1] for i, pair in enumerate(pairs)}

    def _set_items(self, target: Any, items: list[Any]) -> None:
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            for key, value in pairs:
                target[_key(key, len(target))] = value
        elif isinstance(target, Inert):
            target.items += pairs
        else:
            raise ValueError("no mapping")

    def _add(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, list | Inert):
            raise ValueError("no list")
        (target.parts if isinstance(target, Inert) else target).extend(items)

    # One action for each opcode that does more than push a value.

    def _global(self, argument: Any) -> None:
        self._stack.append(self._find(*argument.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        self._stack.append(self._find(*self._pop(2)))

    def _extension(self, code: Any) -> None:
        self._stack.append(self._find("copyreg", f"extension {code}"))

    def _inst(self, argument: Any) -> None:
        args = self._pop_mark()
        self._stack.append(self._make(self._find(*argument.split(" ", 1)), args))

    def _obj(self, _: Any) -> None:
        maker, *args = self._pop_mark()
        self._stack.append(self._make(maker, args))

    def _reduce(self, _: Any) -> None:
        maker, args = self._pop(2)
        self._stack.append(self._make(maker, args))

    def _new_with_names(self, _: Any) -> None:
        maker, args, named = self._pop(3)
        self._stack.append(self._make(maker, (args, named)))

    def _build(self, _: Any) -> None:
        target, state = self._pop(2)
        if isinstance(target, Inert):
            target.state = state
        self._stack.append(target)

    def _persistent(self, _: Any) -> None:
        self._stack.append(self.persistent_load(self._stack.pop()))

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def _list(self, _: Any) -> None:
        self._stack.append(self._pop_mark())

    def _dict(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_items(self._stack[-1], items)

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        self._add(self._stack[-1], [item])

    def _appends(self, _: Any) -> None:
        items = self._pop_mark()
        self._add(self._stack[-1], items)

    def _set_item(self, _: Any) -> None:
        pair = self._pop(2)
        self._set_items(self._stack[-1], pair)

    def _set_all(self, _: Any) -> None:
        items = self._pop_mark()
        self._set_items(self._stack[-1], items)


def _key(key: Any, place: int) -> str | int:
    """Return a key whose hash costs little, and that few others share: a text or a whole number."""
    if isinstance(key, str):
        return key
    return key if isinstance(key, int) and key in _INTEGERS else f"#{place}"


def _tuple_of(count: int) -> Callable[[InertUnpickler, Any], None]:
    return lambda machine, _: machine._stack.append(tuple(machine._pop(count)))


_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_ACTIONS: dict[str, Callable[[InertUnpickler, Any], Any]] = {
    "PROTO": lambda *_: None,
    "FRAME": lambda *_: None,
    "MARK": InertUnpickler._mark,
    "POP": lambda machine, _: machine._pop(1),
    "POP_MARK": lambda machine, _: machine._pop_mark(),
    "DUP": InertUnpickler._duplicate,
    "GLOBAL": InertUnpickler._global,
    "STACK_GLOBAL": InertUnpickler._stack_global,
    "EXT1": InertUnpickler._extension,
    "EXT2": InertUnpickler._extension,
    "EXT4": InertUnpickler._extension,
    "INST": InertUnpickler._inst,
    "OBJ": InertUnpickler._obj,
    "REDUCE": InertUnpickler._reduce,
    "NEWOBJ": InertUnpickler._reduce,
    "NEWOBJ_EX": InertUnpickler._new_with_names,
    "BUILD": InertUnpickler._build,
    "BINPERSID": InertUnpickler._persistent,
    "TUPLE": InertUnpickler._tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "LIST": InertUnpickler._list,
    "FROZENSET": InertUnpickler._list,
    "DICT": InertUnpickler._dict,
    "APPEND": InertUnpickler._append,
    "APPENDS": InertUnpickler._appends,
    "ADDITEMS": InertUnpickler._appends,
    "SETITEM": InertUnpickler._set_item,
    "SETITEMS": InertUnpickler._set_all,
}
