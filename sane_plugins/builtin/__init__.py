"""The package's own abilities as an ordinary plugin. Light at import: heavy imports are inside functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sane_plugins.builtin.abilities import Abilities
from sane_plugins.builtin.portfolio import Portfolio
from sane_plugins.builtin.sources import Sources

if TYPE_CHECKING:
    from sane_plugins.host import Host


class Builtin(Abilities, Portfolio, Sources):
    """The plugin that ships with the package, for one host."""

    __name__ = __name__

    def __init__(self, host: Host) -> None:
        self.host = host


sane_plugin = Builtin
