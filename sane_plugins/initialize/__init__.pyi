from .kinds import CandidateScore, Family, Kind, Origin
from .options import MOST, InitializeOptions, TrainOptions
from .outcome.benefit import BenefitForecast
from .outcome.provenance import (
    Provenance,
    broken_provenance,
    environment_info,
    input_hashes,
    read_provenance,
)
from .outcome.report import html_report
from .outcome.result import Initialization
from .pipeline import initialize, remake
from .pruned import PrunedNetwork, first_task
from .training import train_epochs
from .unscored import generate

__all__ = [
    "MOST",
    "BenefitForecast",
    "CandidateScore",
    "Family",
    "Initialization",
    "InitializeOptions",
    "Kind",
    "Origin",
    "Provenance",
    "PrunedNetwork",
    "TrainOptions",
    "broken_provenance",
    "environment_info",
    "first_task",
    "generate",
    "html_report",
    "initialize",
    "input_hashes",
    "read_provenance",
    "remake",
    "train_epochs",
]
