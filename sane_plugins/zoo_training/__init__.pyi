from .hyperparameters import INITIALIZATIONS, HyperparameterRanges, Hyperparameters, initial
from .training_images import Schedule, TrainingImages
from .training_run import ZooOptions, train_zoo

__all__ = [
    "INITIALIZATIONS",
    "HyperparameterRanges",
    "Hyperparameters",
    "Schedule",
    "TrainingImages",
    "ZooOptions",
    "initial",
    "train_zoo",
]
