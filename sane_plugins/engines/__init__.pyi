from .local_engine import LocalEngine
from .memory_limit import is_out_of_memory
from .outcomes import Done, Engine, Lost, Outcome, Start, Work
from .repeat import TRIES, run_in_order, run_with_retries

__all__ = [
    "TRIES",
    "Done",
    "Engine",
    "LocalEngine",
    "Lost",
    "Outcome",
    "Start",
    "Work",
    "is_out_of_memory",
    "run_in_order",
    "run_with_retries",
]
