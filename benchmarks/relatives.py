"""Are the relatives of a network found, and are strangers left alone?

    python benchmarks/relatives.py --data DIR [--only relatives|trees|speed]

42 networks: twelve of each published zoo, ten ResNets, three ViTs and MLPs trained here by one recipe, two published
ResNets. Each is changed in fourteen ways, and its origin is looked for among all: first, and within the limit that `parents`
uses. Limits were settled on every other network of each group; the rest is reported. Trees of 28 fine-tuned networks, three
generations below a root, six of each of three architectures: which of parent and child is told to be older, and who is told
to be whose parent; the rule was settled on 15 trees of other seeds. Speed is of zoos of 1,000 and 4,000 checkpoints, on one thread;
what grows between them is carried on to 100,000. Parts that are not asked for are kept.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch
from relatives_made import Member, members, relatives
from relatives_trees import Node, trees

from sane_plugins.features import EncodeOptions, SaneEncoder
from sane_plugins.fingerprints import (
    NetworkFingerprint,
    family_tree,
    fingerprint,
    most_alike,
    relate,
    tails,
)
from sane_plugins.weights import from_module
from sane_plugins.zoo import Entry, Zoo, import_published, index_zoo, write_zoo

RESULTS = Path(__file__).parent / "results"
SETTLED, REPORTED = "settled on", "reported"
TREES = {SETTLED: (0, 2, 3, 4, 5), REPORTED: (1, 11, 12, 13, 14, 15)}
"""Seeds of the trees, each of three architectures."""
COUNTS, MANY = (1000, 4000), 100_000


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", choices=["relatives", "trees", "speed"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "relatives.json"
    found: dict[str, Any] = json.loads(path.read_text()) if arguments.only else {}
    parts: dict[str, Callable[[Path], Any]] = {
        "relatives": measure_relatives,
        "trees": measure_trees,
        "speed": lambda data: [measure_speed(data, count) for count in COUNTS],
    }
    for name in [arguments.only] if arguments.only else parts:
        found[name] = parts[name](arguments.data)
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(found))


def measure_relatives(data: Path) -> dict[str, Any]:
    """Return figures of both halves of the networks."""
    halves: dict[str, list[tuple[Member, NetworkFingerprint, dict[str, NetworkFingerprint]]]]
    halves = {SETTLED: [], REPORTED: []}
    counts: dict[str, int] = defaultdict(int)
    with TemporaryDirectory() as folder:
        for member in members(data):
            half = REPORTED if counts[member.group] % 2 else SETTLED
            counts[member.group] += 1
            made = {k: fingerprint(x) for k, x in relatives(member, Path(folder)).items()}
            halves[half].append((member, fingerprint(from_module(member.module)), made))
            print(member.name, flush=True)
    return {half: _figures(chosen) for half, chosen in halves.items()}


def _figures(
    chosen: Sequence[tuple[Member, NetworkFingerprint, Mapping[str, NetworkFingerprint]]],
) -> dict[str, Any]:
    kinds: dict[str, list[tuple[bool, bool, float]]] = defaultdict(list)
    strangers = []
    for i, (member, _, made) in enumerate(chosen):
        for kind, query in made.items():
            found = [relate(query, own) for _, own, _ in chosen]
            best = int(np.argmax([x.similarity for x in found]))
            kinds[kind].append((best == i, found[i].is_related, found[i].similarity))
            strangers += [
                (x.is_related, x.similarity, other.group == member.group)
                for j, ((other, _, _), x) in enumerate(zip(chosen, found, strict=True))
                if j != i
            ]
    return {
        "networks": len(chosen),
        "kinds": {
            kind: {
                "first": mean(x[0] for x in rows),
                "within": mean(x[1] for x in rows),
                "median": median(x[2] for x in rows),
                "least": min(x[2] for x in rows),
            }
            for kind, rows in kinds.items()
        },
        "strangers": len(strangers),
        "of one recipe": sum(x[2] for x in strangers),
        "false": sum(x[0] for x in strangers),
        "most alike": max(x[1] for x in strangers),
    }


def measure_trees(data: Path) -> dict[str, Any]:
    """Return figures of the trees of both halves."""
    return {
        half: [measure_tree(*tree) for seed in seeds for tree in trees(data, seed)]
        for half, seeds in TREES.items()
    }


def measure_tree(name: str, nodes: Sequence[Node]) -> dict[str, Any]:
    """Return how often parents are told to be older than their children, and are told to be their parents."""
    prints = [fingerprint(node.graph) for node in nodes]
    family = family_tree([str(i) for i in range(len(nodes))], prints)
    parents = {int(x.name): int(x.parent) for x in family.members if x.parent}
    place = {int(x.name): i for i, x in enumerate(family.members)}
    edges = [(node.parent, i) for i, node in enumerate(nodes) if node.parent >= 0]
    heavy = [tails(x) for x in prints]
    return {
        "name": name,
        "networks": len(nodes),
        "direction": mean(place[p] < place[c] for p, c in edges),
        "tails alone": mean(heavy[p] < heavy[c] for p, c in edges),
        "parent": mean(parents.get(c) == p for p, c in edges),
        "root": place[0] == 0,
        "related": mean(relate(a, b).is_related for a, b in combinations(prints, 2)),
    }


def measure_speed(data: Path, count: int) -> dict[str, Any]:
    """Return processor seconds that indexing and searching a zoo take, beside reading and encoding it."""
    published = import_published(data / "zoos" / "cifar10-cnn.json")
    entries = [published.entries[i % len(published)] for i in range(count)]
    rng = torch.Generator().manual_seed(0)
    with TemporaryDirectory() as folder:
        zoo = write_zoo(
            folder,
            "many",
            (
                (
                    Entry(network=str(i), checkpoint="1", factory=x.factory, properties={}),
                    {
                        key: t + 0.01 * t.std() * torch.randn(t.shape, generator=rng)
                        for key, t in published.state_dict(x).items()
                    },
                )
                for i, x in enumerate(entries)
            ),
        )
        started = process_time()
        index_zoo(zoo)
        indexing = process_time() - started
        query = fingerprint(published.graph(entries[5]))
        started = process_time()
        indexed = index_zoo(zoo)
        most_alike(query, indexed.fingerprints)
        search = process_time() - started
        size = sum(x.stat().st_size for x in Path(folder).glob("fingerprints-*"))
        encoding = _encoding_seconds(zoo, 100) * count / 100
    return {
        "checkpoints": count,
        "values": query.size,
        "indexing": indexing,
        "encoding": encoding,
        "search": search,
        "index bytes": size,
    }


def _encoding_seconds(zoo: Zoo, count: int) -> float:
    encoder, options = SaneEncoder(), EncodeOptions(latents=False)
    started = process_time()
    for entry in zoo.entries[:count]:
        encoder.encode(zoo.graph(entry), options)
    return process_time() - started


def page(found: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    own = found["relatives"][REPORTED]
    lines = [
        "# Relatives",
        "",
        "Written by `python benchmarks/relatives.py`, whose docstring says what is compared.",
        "",
        f"The origin of each relative among {own['networks']} networks that no limit was settled on:",
        "",
        "| relative | origin first | within the limit | similarity, median | least |",
        "|---|---|---|---|---|",
    ]
    for kind, row in own["kinds"].items():
        shares = f"{row['first']:.0%} | {row['within']:.0%}"
        lines.append(f"| {kind} | {shares} | {row['median']:.2f} | {row['least']:.2f} |")
    lines += [
        "",
        f"Strangers within the limit: {own['false']} of {own['strangers']:,} pairs, {own['of one recipe']:,} of them"
        f" of one architecture and recipe (on the half that limits were settled on:"
        f" {found['relatives'][SETTLED]['false']} of {found['relatives'][SETTLED]['strangers']:,}). The most alike"
        f" have {own['most alike']:.2f}.",
        "",
        "Trees of fine-tuned networks, three generations below the root. Of parent and child, the parent is told to be"
        " older by the rule of the tree, and by tails alone:",
        "",
        "| architecture | trees, of networks | older by the tree (least) | by tails alone | parent right | root right |",
        "|---|---|---|---|---|---|",
        *_tree_rows(found["trees"][REPORTED]),
    ]
    both = [mean(x["direction"] for x in found["trees"][half]) for half in (REPORTED, SETTLED)]
    speed, larger = found["speed"]
    grown = _carried_on(speed, larger)
    lines += [
        "",
        f"Together {both[0]:.0%} of directions are right; of the trees that the rule was settled on {both[1]:.0%}.",
        "",
        f"A zoo of {speed['checkpoints']:,} checkpoints of {speed['values']:,} values each, processor seconds on one"
        f" thread: indexing {speed['indexing']:.1f}, reading and encoding {speed['encoding']:.1f}, a search after indexing"
        f" {speed['search']:.2f}. The index has {speed['index bytes'] / 2**20:.1f} MiB. With {larger['checkpoints']:,}"
        f" checkpoints: indexing {larger['indexing']:.1f}, a search {larger['search']:.2f}, {larger['index bytes'] / 2**20:.1f} MiB. By the line"
        f" through both, {MANY:,} take {grown['indexing'] / 60:.0f} minutes to index, {grown['search']:.0f} s for a search"
        f" and {grown['index bytes'] / 2**30:.1f} GiB.",
        "",
    ]
    return "\n".join(lines)


def _carried_on(less: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Return what `MANY` checkpoints take by the line through two measurements."""
    further = (MANY - less["checkpoints"]) / (more["checkpoints"] - less["checkpoints"])
    keys = ("indexing", "search", "index bytes")
    return {key: less[key] + further * (more[key] - less[key]) for key in keys}


def _tree_rows(trees_of_all: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for name in dict.fromkeys(row["name"] for row in trees_of_all):
        rows = [row for row in trees_of_all if row["name"] == name]
        told = [mean(row[key] for row in rows) for key in ("direction", "tails alone", "parent")]
        least = min(row["direction"] for row in rows)
        yield (
            f"| {name} | {len(rows)} of {rows[0]['networks']} | {told[0]:.0%} ({least:.0%}) | {told[1]:.0%} |"
            f" {told[2]:.0%} | {sum(row['root'] for row in rows)} |"
        )


if __name__ == "__main__":
    main()
