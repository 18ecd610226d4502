from .difference import LayerDifference, Network, NetworkComparison, TensorDifference
from .network_comparison import compare
from .presentation.comparison_plot import draw_comparison, save_comparison_plot
from .presentation.layer_table import table_of_layers
from .presentation.phrases import summary_lines, verdict_line
from .presentation.record import comparison_record
from .relation import Relation
from .verdict import SAME_WEIGHTS, Verdict, VerdictKind, judge

__all__ = [
    "SAME_WEIGHTS",
    "LayerDifference",
    "Network",
    "NetworkComparison",
    "Relation",
    "TensorDifference",
    "Verdict",
    "VerdictKind",
    "compare",
    "comparison_record",
    "draw_comparison",
    "judge",
    "save_comparison_plot",
    "summary_lines",
    "table_of_layers",
    "verdict_line",
]
