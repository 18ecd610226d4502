from .in_place import initialize_
from .training_watch import PredictWhileTraining, WatchedStep

__all__ = ["PredictWhileTraining", "WatchedStep", "initialize_"]
