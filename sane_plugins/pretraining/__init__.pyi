from .behavior import Outputs
from .distributed import World, joined
from .presets import PRESETS, Preset, PretrainOptions, default, paper
from .step import Behavior
from .trainer import log_path, pretrain, state_path
from .training_log import draw_curves, read_log

__all__ = [
    "PRESETS",
    "Behavior",
    "Outputs",
    "Preset",
    "PretrainOptions",
    "World",
    "default",
    "draw_curves",
    "joined",
    "log_path",
    "paper",
    "pretrain",
    "read_log",
    "state_path",
]
