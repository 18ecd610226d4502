from .hyperparameters import (
    INITIALIZATIONS,
    HyperparameterRanges,
    Hyperparameters,
    build_initialized,
)
from .training_images import Schedule, TrainingImages
from .zoo_trainer import ZooOptions, require_start, train_zoo

__all__ = [
    "INITIALIZATIONS",
    "HyperparameterRanges",
    "Hyperparameters",
    "Schedule",
    "TrainingImages",
    "ZooOptions",
    "build_initialized",
    "require_start",
    "train_zoo",
]
