from .class_folders import count_files
from .image_files import MixedSizesError
from .loading import load_task
from .scoring import accuracy, correct, forward_flops, logits, require_fit
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
]
