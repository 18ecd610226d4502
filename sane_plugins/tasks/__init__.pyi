from .loading import load_task
from .scoring import accuracy, correct, forward_flops, logits, require_fit
from .task import Task
from .task_embedding import SIZE, describe
from .torchvision_datasets import TORCHVISION

__all__ = [
    "SIZE",
    "TORCHVISION",
    "Task",
    "accuracy",
    "correct",
    "describe",
    "forward_flops",
    "load_task",
    "logits",
    "require_fit",
]
