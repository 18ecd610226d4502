import pluggy

from .attachment import attach
from .errors import PluginError, SaneError, SourceError, TaskError, UsageError, ZooError
from .features import EncodeOptions, Encoding
from .host import Host, open
from .initialize import Initialization, InitializeOptions, TrainOptions
from .live_modules import PredictWhileTraining, initialize_
from .pretraining import PretrainOptions
from .progress import Progress
from .properties import CategoryEstimate, Estimate, PredictOptions
from .tasks import Task, load_task
from .weights import WeightGraph
from .zoo import Zoo
from .zoo_training import ZooOptions

__version__: str
hookimpl: pluggy.HookimplMarker
hookspec: pluggy.HookspecMarker

__all__ = [
    "CategoryEstimate",
    "EncodeOptions",
    "Encoding",
    "Estimate",
    "Host",
    "Initialization",
    "InitializeOptions",
    "PluginError",
    "PredictOptions",
    "PredictWhileTraining",
    "PretrainOptions",
    "Progress",
    "SaneError",
    "SourceError",
    "Task",
    "TaskError",
    "TrainOptions",
    "UsageError",
    "WeightGraph",
    "Zoo",
    "ZooError",
    "ZooOptions",
    "__version__",
    "attach",
    "hookimpl",
    "hookspec",
    "initialize_",
    "load_task",
    "open",
]
