from .hyperparameters import (
    INITIALIZATIONS,
    HyperparameterRanges,
    Hyperparameters,
    build_initialized,
)
from .recipe import NetworkTraining, Recipe, RecipeNetwork, RecipeTask
from .recipe_zoo import RecipeOptions, train_recipe
from .training_images import Schedule, TrainingImages
from .zoo_trainer import ZooOptions, require_start, train_zoo

__all__ = [
    "INITIALIZATIONS",
    "HyperparameterRanges",
    "Hyperparameters",
    "NetworkTraining",
    "Recipe",
    "RecipeNetwork",
    "RecipeOptions",
    "RecipeTask",
    "Schedule",
    "TrainingImages",
    "ZooOptions",
    "build_initialized",
    "require_start",
    "train_recipe",
    "train_zoo",
]
