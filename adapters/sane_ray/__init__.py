"""Work spread over a Ray cluster: an engine of actors, and a class for `ray.data`.

PYTEST_DONT_REWRITE: our fixtures for pytest make it warn of packages that were imported before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sane_plugins import hookimpl

if TYPE_CHECKING:
    from sane_plugins.engines import Engine


@hookimpl
def sane_engines() -> Mapping[str, Engine]:
    """Return the engine `ray` where the library is; it is imported when the engine is called."""
    found = find_spec("ray")
    if found is None or found.origin is None:  # a folder of that name is no library
        return {}
    from sane_ray.actor_engine import RayEngine

    return {"ray": RayEngine()}
