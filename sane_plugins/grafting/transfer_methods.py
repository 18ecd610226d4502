"""The methods of transfer that ship with the package.

The method: docs/explanation/sane.md, sections 15 and 16.
"""

from __future__ import annotations

from sane_plugins.grafting.methods import GraftMethod, MimeticMethod, PlaceMethod, TransferMethod
from sane_plugins.grafting.reconstruction import ReconstructionMethod
from sane_plugins.grafting.regression import RegressionMethod

_PROTECTION = 4.0


def transfer_methods() -> dict[str, TransferMethod]:
    """Return the methods that ship with the package, by name.

    The first is quick, and scouts which prompt to take; the others come in the order in which they are tried.
    """
    return {
        "graft": GraftMethod(),
        "reconstruction": ReconstructionMethod(),
        "regression-protected": RegressionMethod(protect=_PROTECTION),
        "regression": RegressionMethod(),
        "place": PlaceMethod(),
        "mimetic": MimeticMethod(),
    }
