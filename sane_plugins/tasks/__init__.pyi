from .class_folders import count_files
from .image_files import MixedSizesError
from .loading import load_task
from .network_fit import require_fit, require_trainable
from .scoring import accuracy, correct, forward_flops, logits
from .task import Task
from .task_embedding import SIZE, describe
from .torchvision_datasets import TORCHVISION
from .usage import Usage

__all__ = [
    "SIZE",
    "TORCHVISION",
    "MixedSizesError",
    "Task",
    "Usage",
    "accuracy",
    "correct",
    "count_files",
    "describe",
    "forward_flops",
    "load_task",
    "logits",
    "require_fit",
    "require_trainable",
]
