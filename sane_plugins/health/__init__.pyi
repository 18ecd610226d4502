from .check import check_network
from .findings import KINDS, Finding, Health
from .reference import Reference, fit_reference

__all__ = ["KINDS", "Finding", "Health", "Reference", "check_network", "fit_reference"]
