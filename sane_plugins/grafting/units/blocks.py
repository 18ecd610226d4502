"""The blocks of a network: residual units, modules of one class, gates and shortcuts in them.

The method: docs/explanation/sane.md, section 15.1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from sane_plugins.grafting.connections import Connections

Place = Literal["body", "shortcut", "gate", "classifier"]
"""What a unit does in its block: a gate's output multiplies, a shortcut's is added to the body's."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass
class BlockPlan:
    """Which block each unit is in, by its number, and what it does there."""

    blocks: dict[int, int] = field(default_factory=dict)
    places: dict[int, Place] = field(default_factory=dict)
    gate_ends: set[int] = field(default_factory=set)
    identity_ends: set[int] = field(default_factory=set)


def find_blocks(
    module: nn.Module,
    names: Sequence[str],
    separable: Iterable[Sequence[int]],
    connections: Connections,
    reach: Mapping[str, int],
    classifier: int | None,
) -> BlockPlan:
    """Return the blocks of units, given by name in the order of execution; blocks count in that order.

    `separable`: each depthwise unit between units with one tap, those with it. `reach`: of each layer
    which units its value depends on (bit i for number i); nothing where connections are not known.
    """
    plan = BlockPlan()
    if classifier is not None:
        plan.places[classifier] = "classifier"
    groups: list[set[int]] = []
    if reach:
        groups += _joined(connections, reach, plan)
    gates = {number for number, place in plan.places.items() if place == "gate"}
    taken = set().union(*groups) | plan.places.keys()
    groups += _contained(module, names, taken, gates)
    taken = taken.union(*groups)
    for chain in separable:
        if len(free := set(chain) - taken) > 1:
            groups.append(free)
            taken = taken | free
    groups += [{number} for number in range(len(names)) if number not in taken]
    groups += [{classifier}] if classifier is not None else []
    for block, members in enumerate(sorted(groups, key=min)):
        plan.blocks |= dict.fromkeys(members, block)
    for number in range(len(names)):
        if number not in plan.blocks:  # a gate works in the block of the unit before it
            plan.blocks[number] = plan.blocks.get(number - 1, 0)
        plan.places.setdefault(number, "body")
    return plan


def _joined(connections: Connections, reach: Mapping[str, int], plan: BlockPlan) -> list[set[int]]:
    """Return the units between where values part and where they are added or concatenated.

    Units whose product with another value is taken, and which read that value, are noted as gates.
    """
    joins = [x for x in connections.order if connections.layers[x].kind in ("join", "concat")]
    branches = {x: [_members(reach[y]) for y in connections.data(x)] for x in joins}
    for name in joins:
        if connections.is_product(name) and len(branches[name]) == 2:
            _note_gate(branches[name][0], branches[name][1], plan)
    groups: list[set[int]] = []
    taken = set(plan.places)
    for name in joins:
        parts = branches[name]
        if connections.is_product(name) or len(parts) < 2:
            continue
        common = set.intersection(*parts)
        exclusive = [part - common - taken for part in parts]
        members = set().union(*exclusive)
        if not members:
            continue
        groups.append(members)
        taken |= members
        if connections.layers[name].kind == "join" and len(parts) == 2:
            short, long = sorted(exclusive, key=len)
            if short and len(short) < len(long):
                plan.places |= dict.fromkeys(short, "shortcut")
            if not all(part - common for part in parts):
                plan.identity_ends.add(max(long))
    return groups


def _note_gate(one: set[int], other: set[int], plan: BlockPlan) -> None:
    small, large = (one, other) if one <= other else (other, one)
    if gate := large - small if small <= large else set():
        plan.places |= dict.fromkeys(gate, "gate")
        plan.gate_ends.add(max(gate))


def _contained(
    module: nn.Module, names: Sequence[str], taken: set[int], gates: set[int]
) -> list[set[int]]:
    """Return the units of modules of a class that occurs more than once, each with several units.

    The innermost modules come first. Torch's containers are no such class: they hold anything.
    """
    members: dict[str, set[int]] = {}
    for number, name in enumerate(names):
        if number not in taken:
            for parent in _parents(name):
                members.setdefault(parent, set()).add(number)
    parts = dict(module.named_modules())
    held = {name: numbers for name, numbers in members.items() if len(numbers) > 1}
    kinds = Counter(type(parts[name]) for name in held if type(parts[name]) not in _CONTAINERS)
    groups: list[set[int]] = []
    for name in sorted(held, key=lambda x: -x.count(".")):
        is_repeated = kinds[type(parts[name])] > 1
        whole = {n for n, unit in enumerate(names) if unit.startswith(f"{name}.")}
        if is_repeated and not whole & (taken - gates) and not _overlap(held[name], groups):
            groups.append(held[name])
    return groups


def _overlap(members: set[int], groups: Iterable[set[int]]) -> bool:
    return any(members & group for group in groups)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _members(bits: int) -> set[int]:
    """Return the numbers whose bits are set."""
    return {i for i in range(bits.bit_length()) if bits >> i & 1}
