"""Which registered model is a relative of a network? The newest versions are compared by fingerprints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sane_mlflow.download import downloaded
from sane_plugins import Host, SaneError
from sane_plugins.errors import first_line
from sane_plugins.fingerprints import NetworkFingerprint, Relationship, fingerprint, relate

_LOG = logging.getLogger("sane_mlflow")
_NEWEST = ["last_updated_timestamp DESC"]


@dataclass(frozen=True, kw_only=True)
class Registered:
    """The nearest relative among registered models, if there is one, and how many were compared or unread."""

    name: str | None
    relationship: Relationship | None
    compared: int
    unread: int

    @property
    def relation(self) -> str:
        """Say what the nearest has in common with the network."""
        if self.relationship is None:
            return "nothing"
        return "the same weights" if self.relationship.is_same else "weights of one origin"


def nearest_registered(
    host: Host,
    client: Any,
    network: NetworkFingerprint,
    is_itself: Callable[[Any], bool],
    most: int,
) -> Registered:
    """Compare a network with at most so many versions of registered models, the newest first."""
    versions: list[Any] = []
    if most > 0:
        try:
            found = client.search_model_versions(max_results=most + 1, order_by=_NEWEST)
            versions = [x for x in found if not is_itself(x)][:most]
        except Exception as error:  # a store without a registry, or one that is not to be listed
            _LOG.warning("registered models were not compared: %s", first_line(error))
    related: list[tuple[str, Relationship]] = []
    unread = 0
    for version in versions:
        name = uri_of(version)
        try:
            with downloaded(name) as folder:
                relationship = relate(network, fingerprint(host.open(folder)))
        except SaneError as error:
            _LOG.debug("not compared: %s", error)
            unread += 1
            continue
        if relationship.is_related:
            related.append((name, relationship))
    best = max(related, key=lambda x: x[1].similarity, default=(None, None))
    return Registered(
        name=best[0], relationship=best[1], compared=len(versions) - unread, unread=unread
    )


def uri_of(version: Any) -> str:
    """Return the name by which a version of a registered model is read."""
    return f"models:/{version.name}/{version.version}"
