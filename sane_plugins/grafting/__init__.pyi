from .batchnorm import condition, conditioned
from .channel_maps import ChannelMaps
from .classifier import find_classifier, fit_classifier
from .matching import Matching, Pair, match, match_places
from .prompt_network import Preparation, PromptInfo, PromptNetwork
from .units import NetworkUnits, Norm, Unit, read_units

__all__ = [
    "ChannelMaps",
    "Matching",
    "NetworkUnits",
    "Norm",
    "Pair",
    "Preparation",
    "PromptInfo",
    "PromptNetwork",
    "Unit",
    "condition",
    "conditioned",
    "find_classifier",
    "fit_classifier",
    "match",
    "match_places",
    "read_units",
]
