from .batchnorm import condition, conditioned, has_statistics, norms_in_training_mode
from .channel_maps import ChannelMaps
from .classifier import find_classifier, fit_classifier, softness_of, write_classifier
from .kept_channels import KeptChannels, find_kept_channels
from .lending import GraftedWeights, graft
from .matching import Matching, Pair, match, match_places
from .methods import (
    Graft,
    GraftMethod,
    TransferMethod,
    Transplant,
    VariantMethod,
    base_of,
    write_graft,
)
from .prompt_network import (
    Preparation,
    PromptInfo,
    PromptNetwork,
    PromptOffer,
    PublishedNetwork,
    prompt_images,
)
from .reconstruction import ReconstructionMethod
from .regression import RegressionMethod
from .ridge_classifier import LeftOutLosses, RidgeFit, fit_ridge, lead
from .transfer_methods import transfer_methods
from .units import NetworkUnits, Norm, Unit, read_units

__all__ = [
    "ChannelMaps",
    "Graft",
    "GraftMethod",
    "GraftedWeights",
    "KeptChannels",
    "LeftOutLosses",
    "Matching",
    "NetworkUnits",
    "Norm",
    "Pair",
    "Preparation",
    "PromptInfo",
    "PromptNetwork",
    "PromptOffer",
    "PublishedNetwork",
    "ReconstructionMethod",
    "RegressionMethod",
    "RidgeFit",
    "TransferMethod",
    "Transplant",
    "Unit",
    "VariantMethod",
    "base_of",
    "condition",
    "conditioned",
    "find_classifier",
    "find_kept_channels",
    "fit_classifier",
    "fit_ridge",
    "graft",
    "has_statistics",
    "lead",
    "match",
    "match_places",
    "norms_in_training_mode",
    "prompt_images",
    "read_units",
    "softness_of",
    "transfer_methods",
    "write_classifier",
    "write_graft",
]
