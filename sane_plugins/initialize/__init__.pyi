from .benefit import BenefitForecast
from .options import CandidateScore, InitializeOptions
from .pipeline import Initialization, generate, initialize, remake
from .provenance import ingredients, read_provenance, restored, surroundings
from .pruned import PrunedNetwork, first_task
from .report import html_report
from .successive_halving import family
from .training import TrainOptions, train_epochs

__all__ = [
    "BenefitForecast",
    "CandidateScore",
    "Initialization",
    "InitializeOptions",
    "PrunedNetwork",
    "TrainOptions",
    "family",
    "first_task",
    "generate",
    "html_report",
    "ingredients",
    "initialize",
    "read_provenance",
    "remake",
    "restored",
    "surroundings",
    "train_epochs",
]
