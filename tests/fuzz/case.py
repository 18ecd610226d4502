"""One damaged file: where it lies, chance, and what else may be mixed in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz.corpus import Base

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    -(2**31),
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)
NAMES = ("", "x", "..", "a/b", "a\\b", "\0", "é\u202e", "w" * 3000, "0", "weight", "a.b.c.", "\n")


@dataclass
class Case:
    """A network copied to a folder of its own, to be damaged there with this source of chance."""

    rng: Random
    path: Path
    secrets: Path
    donors: Sequence[Base]

    def any_bytes(self) -> bytes:
        """Return a piece of some other file."""
        data = self.rng.choice(self.donors).path.read_bytes()
        start = self.rng.randrange(max(len(data), 1))
        return data[start : start + self.rng.choice((1, 4, 16, 64, 512, 4096))]

    def outside(self) -> str:
        """Return a name that leads out of the folder, or to what is no file."""
        secret = self.secrets / self.rng.choice(sorted(p.name for p in self.secrets.iterdir()))
        up = Path("..", secret.parent.name, secret.name)
        link, door = self.path.parent / "link", self.path.parent / "door"
        for place, target in ((link, secret), (door, secret.parent)):
            if not place.is_symlink():
                place.symlink_to(target)
        return self.rng.choice(
            [
                str(up),
                str(secret),
                f"./x/../{up}",
                link.name,
                f"{door.name}/{secret.name}",
                "..",
                "/dev/zero",
                "/etc/passwd",
                f"file://{secret}",
                str(up).replace("/", "\\"),
                *NAMES,
            ]
        )


Mutation = Callable[[Case], None]


def copied(base: Base, folder: Path) -> Path:
    """Copy a network with the files that belong to it; return the path of the copy."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (base.path, *base.others):
        shutil.copyfile(path, folder / path.name)
    return folder / base.path.name
