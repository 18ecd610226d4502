from .batchnorm import condition, conditioned
from .classifier import find_classifier, fit_classifier
from .prompt_network import Preparation, PromptInfo, PromptNetwork

__all__ = [
    "Preparation",
    "PromptInfo",
    "PromptNetwork",
    "condition",
    "conditioned",
    "find_classifier",
    "fit_classifier",
]
