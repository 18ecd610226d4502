"""Report on many networks: each is read once, then all are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sane_plugins.display import ShortRepr
from sane_plugins.fingerprints import PackedFingerprints, pack_all
from sane_plugins.progress import Progress, Report, silent
from sane_plugins.properties import Rank, rank_all
from sane_plugins.zoo_report.best_network import BestNetwork, find_best
from sane_plugins.zoo_report.network_map import NetworkMap, map_networks
from sane_plugins.zoo_report.network_row import NetworkRow, Predict, ReportedNetwork, examine
from sane_plugins.zoo_report.relatives import Relatives, find_relatives


@dataclass(frozen=True, kw_only=True, eq=False)
class Fingerprinted:
    """Fingerprints that are known already, as of a zoo's index, and why there are none of some."""

    packed: Sequence[PackedFingerprints] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ZooReport(ShortRepr):
    """What is known of the networks of a folder or a zoo, whose name is `source`.

    `ranks`, by property and network, are those of networks of a kind that no head was fitted on; `force`
    tells the values of these too (`properties.is_withheld`).
    """

    source: str
    rows: tuple[NetworkRow, ...]
    best: BestNetwork
    relatives: Relatives
    map: NetworkMap
    ranks: Mapping[str, Mapping[str, Rank]]
    force: bool = False


def report_on(
    source: str,
    networks: Sequence[ReportedNetwork],
    predict: Predict,
    best_by: str,
    *,
    lower: bool = False,
    force: bool = False,
    known: Fingerprinted | None = None,
    report: Report = silent,
) -> ZooReport:
    """Look at networks, compare them, and choose the best by a property.

    `predict` gives a network's properties; with `lower` less of the property is better. With `force` values
    are shown of networks unlike all that a head was fitted on. An error of one network is kept in its row.
    Raises `UsageError` for what makes the whole call wrong.
    """
    known = known or Fingerprinted()
    have = {name for one in known.packed for name in one.names} | known.skipped.keys()
    rows, prints = [], {}
    for i, network in enumerate(networks):
        report(Progress(job="look at networks", done=i, total=len(networks), note=network.name))
        row, own = examine(network, predict, with_fingerprint=network.name not in have)
        if row.health is not None and network.name in known.skipped:
            failed = {**row.errors, "fingerprint": known.skipped[network.name]}
            row = replace(row, errors=failed)
        rows.append(row)
        if own is not None:
            prints[network.name] = own
    report(Progress(job="look at networks", done=len(networks), total=len(networks)))
    packed = [*known.packed, *pack_all(prints.items())]
    relatives = find_relatives(packed, report)
    return ZooReport(
        source=source,
        rows=tuple(rows),
        best=find_best(rows, relatives, best_by, lower=lower),
        relatives=relatives,
        map=map_networks(packed),
        ranks=rank_all({row.name: row.predictions for row in rows}),
        force=force,
    )
