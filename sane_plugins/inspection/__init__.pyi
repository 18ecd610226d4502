from .plain_text import plain_lines
from .plot import require_plot, save_plot
from .record import survey_record
from .survey import LayerStats, Portion, Survey, percent, survey_network
from .tensor_stats import TensorStats
from .text import MAX_TABLE_LAYERS, layer_table, summary_lines

__all__ = [
    "MAX_TABLE_LAYERS",
    "LayerStats",
    "Portion",
    "Survey",
    "TensorStats",
    "layer_table",
    "percent",
    "plain_lines",
    "require_plot",
    "save_plot",
    "summary_lines",
    "survey_network",
    "survey_record",
]
