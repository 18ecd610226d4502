from .behavior_loss import BehaviorLoss
from .distributed import World, process_group
from .presets import PRESETS, Preset, PretrainOptions, default_preset, paper_preset
from .trainer import log_path, prepare_datasets, pretrain, state_path
from .training_log import draw_curves, read_log
from .training_step import BehaviorTerm

__all__ = [
    "PRESETS",
    "BehaviorLoss",
    "BehaviorTerm",
    "Preset",
    "PretrainOptions",
    "World",
    "default_preset",
    "draw_curves",
    "log_path",
    "paper_preset",
    "prepare_datasets",
    "pretrain",
    "process_group",
    "read_log",
    "state_path",
]
