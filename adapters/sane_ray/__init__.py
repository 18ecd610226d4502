"""Work spread over a Ray cluster: an engine of actors, and a class for `ray.data`.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sane_plugins import hookimpl

if TYPE_CHECKING:
    from sane_plugins.engines import Engine


@hookimpl
def sane_engines() -> Mapping[str, Engine]:
    """Return the engine `ray`; the library is imported when it is called."""
    from sane_ray.actor_engine import RayEngine

    return {"ray": RayEngine()}
