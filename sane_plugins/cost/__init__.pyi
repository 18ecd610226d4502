from .builders import BuildableNetwork, find_network
from .latency_model import LatencyEstimate, LatencyModel, fit_latency
from .measured_file import read_measured
from .meta_run import cost_of
from .network_cost import CLOCKS, CostOptions, Latency, LatencyOptions, NetworkCost
from .timing import measure_latency

__all__ = [
    "CLOCKS",
    "BuildableNetwork",
    "CostOptions",
    "Latency",
    "LatencyEstimate",
    "LatencyModel",
    "LatencyOptions",
    "NetworkCost",
    "cost_of",
    "find_network",
    "fit_latency",
    "measure_latency",
    "read_measured",
]
