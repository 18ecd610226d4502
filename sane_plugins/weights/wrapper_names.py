"""Names of tensors as the plain module has them: without what wrappers of modules put into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Attributes in which wrappers of torch keep the module that they wrap; their names are no one else's.
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_fpw_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
# This one is shared by many, and may be anyone's: it is removed where every name begins with it.
_COMMON = "module"
_COUNTER = "n_averaged"  # which AveragedModel has beside it


@dataclass(frozen=True)
class PlainNames:
    """The names that change, and the wrappers that had been around the module."""

    plain: Mapping[str, str]
    wrappers: tuple[str, ...]

    def of(self, key: str) -> str:
        """Return a name without its wrappers."""
        return self.plain.get(key, key)


def strip_wrapper_prefixes(keys: Iterable[str]) -> PlainNames:
    """Return the plain name of each name that wrappers changed.

    A wrapper whose removal would give two tensors one name is left in.
    """
    names = {key: key for key in keys}
    found: list[str] = []
    for attribute, wrapper in _WRAPPERS.items():
        shorter = {key: _without(name, attribute) for key, name in names.items()}
        if shorter != names and _are_distinct(shorter):
            names, found = shorter, [*found, f"{attribute} ({wrapper})"]
    while True:
        wrapped = [key for key, name in names.items() if name != _COUNTER]
        shorter = names | {key: names[key].removeprefix(f"{_COMMON}.") for key in wrapped}
        if not wrapped or any(shorter[key] == names[key] for key in wrapped):
            break
        if not _are_distinct(shorter):
            break
        is_average = len(wrapped) < len(names)
        names = shorter
        found.append(f"{_COMMON} ({'AveragedModel' if is_average else 'DataParallel or another'})")
    plain = {key: name for key, name in names.items() if name != key}
    return PlainNames(plain, tuple(dict.fromkeys(found)))


def _without(name: str, attribute: str) -> str:
    *modules, last = name.split(".")
    return ".".join([*(module for module in modules if module != attribute), last])


def _are_distinct(names: Mapping[str, str]) -> bool:
    return len({*names.values()}) == len(names)
