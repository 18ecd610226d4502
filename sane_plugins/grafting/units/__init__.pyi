from .channel_axes import ChannelGroup
from .unit import ExtraTensor, NetworkUnits, Norm, Unit
from .unit_reader import read_units

__all__ = ["ChannelGroup", "ExtraTensor", "NetworkUnits", "Norm", "Unit", "read_units"]
