"""Encode networks of any architecture, predict their properties, and initialise new ones (SANE)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from sane_plugins.attachment import attach as attach
    from sane_plugins.host import Host as Host

__version__ = "0.1.0"
__all__ = ["Host", "__version__", "attach", "hookimpl", "hookspec"]

hookspec = HookspecMarker("sane_plugins")
hookimpl = HookimplMarker("sane_plugins")


def __getattr__(name: str) -> Any:
    """Load `Host` and `attach` when they are first asked for: markers must import in no time."""
    if name == "Host":
        from sane_plugins.host import Host

        return Host
    if name == "attach":
        from sane_plugins.attachment import attach

        return attach
    raise AttributeError(f"module 'sane_plugins' has no attribute '{name}'")
