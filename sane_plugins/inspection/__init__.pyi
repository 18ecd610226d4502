from .plot import require_plot, save_plot
from .survey import LayerStats, Portion, Survey, percent, survey_network
from .tensor_stats import TensorStats

__all__ = [
    "LayerStats",
    "Portion",
    "Survey",
    "TensorStats",
    "percent",
    "require_plot",
    "save_plot",
    "survey_network",
]
