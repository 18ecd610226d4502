"""The networks that a command looks through: of zoos, whose index is kept, and of other sources, read now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sane_plugins import fingerprints, zoo
from sane_plugins.cli.console import note
from sane_plugins.cli.options.sources import networks_of, process_networks
from sane_plugins.errors import SourceError

if TYPE_CHECKING:
    from sane_plugins.fingerprints import PackedFingerprints
    from sane_plugins.host import Host
    from sane_plugins.zoo import Entry

_MOST_TOLD = 5


@dataclass
class Among:
    """Fingerprints of many networks by name, the zoo entries behind these names, and what was left out."""

    packed: list[PackedFingerprints] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.packed))

    @property
    def names(self) -> list[str]:
        """Return the names of the networks."""
        return [name for x in self.packed for name in x.names]

    def properties(self, name: str) -> Mapping[str, Any]:
        """Return what is known of a network; nothing of one that is in no zoo."""
        return self.entries[name].properties if name in self.entries else {}

    def tell_skipped(self) -> None:
        """Say on stderr which networks were left out, and why."""
        for name, why in [*self.skipped.items()][:_MOST_TOLD]:
            note(f"Skipped: {name}: {why}.")
        if len(self.skipped) > _MOST_TOLD:
            note(f"Skipped: {len(self.skipped) - _MOST_TOLD} more.")


def read_zoo(host: Host, folder: Path) -> Among:
    """Return the networks of a zoo, indexed. Raises `ZooError` where there is none."""
    opened = zoo.Zoo.open(folder)
    indexed = zoo.index_zoo(opened, host.report)
    for text in indexed.notes:
        note(f"Note: {folder}: {text}.")
    if indexed.stale:
        note(f"Note: {folder}: {indexed.stale} indexed networks are gone or have changed.")
    entries = {entry.key: entry for entry in opened.entries}
    return Among([*indexed.fingerprints], entries, dict(indexed.skipped))


def read_among(host: Host, names: Sequence[str]) -> Among:
    """Return the networks of zoos, of folders, and others. Raises `SourceError` where none can be read."""
    found = Among()
    for name in names:
        if zoo.is_zoo(Path(name)):
            one = read_zoo(host, Path(name))
            prefix = f"{name}:" if len(names) > 1 else ""
            found.packed += [x.named([prefix + key for key in x.names]) for x in one.packed]
            found.entries |= {prefix + key: entry for key, entry in one.entries.items()}
            found.skipped |= {prefix + key: why for key, why in one.skipped.items()}
            continue
        networks = networks_of([name], host.open)
        if len(names) == len(networks) == 1:
            prints = {name: fingerprints.fingerprint(networks[0].open())}
        else:
            prints, errors = process_networks(
                networks, fingerprints.fingerprint, host.report, "fingerprint"
            )
            found.skipped |= {key: error.found for key, error in errors.items()}
        found.packed += fingerprints.pack_all(prints.items())
    if not len(found):
        raise SourceError(
            ", ".join(names)[:200],
            "none of its networks could be read",
            "at least one is needed",
            "see the reasons with 'sane-plugins inspect'",
        )
    return found
