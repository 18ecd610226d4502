"""A report as plain data: what the page shows, for programs."""

from __future__ import annotations

from typing import Any

from sane_plugins.fingerprints import FamilyTree
from sane_plugins.properties import estimate_record
from sane_plugins.zoo_report.network_row import NetworkRow
from sane_plugins.zoo_report.zoo_report import ZooReport


def to_record(report: ZooReport) -> dict[str, Any]:
    """Return a report as dictionaries, lists, text and numbers."""
    return {
        "source": report.source,
        "best": vars(report.best),
        "broken": [row.name for row in report.rows if row.is_broken],
        "unreadable": [row.name for row in report.rows if row.health is None],
        "duplicates": [list(group) for group in report.relatives.duplicates],
        "families": [_family(x) for x in report.relatives.families],
        "map": {"share_of_variance": report.map.share, "places": report.map.places},
        "networks": {row.name: _network(row, report) for row in report.rows},
    }


def _network(row: NetworkRow, report: ZooReport) -> dict[str, Any]:
    return {
        "verdict": row.verdict,
        "healthy": row.is_healthy,
        "findings": [vars(x) for x in row.health.findings] if row.health else [],
        "parameters": row.parameters,
        "measured": dict(row.measured),
        "predictions": {
            name: estimate_record(x, force=report.force, rank=report.ranks[name].get(row.name))
            for name, x in row.predictions.items()
        },
        "errors": dict(row.errors),
    }


def _family(family: FamilyTree) -> list[dict[str, Any]]:
    return [
        {
            "name": member.name,
            "parent": member.parent or None,
            "similarity": member.relationship.similarity if member.relationship else None,
            "same": bool(member.relationship and member.relationship.is_same),
        }
        for member in family.members
    ]
