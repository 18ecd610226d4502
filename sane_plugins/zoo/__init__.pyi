from .add import Added, AddOptions, add_networks
from .evaluate import Evaluated, EvaluateOptions, evaluate_zoo
from .index import Entry, read_index
from .property_table import join_table, read_table
from .store import Zoo, evaluation_pool, import_published, is_zoo, set_properties, write_zoo

__all__ = [
    "AddOptions",
    "Added",
    "Entry",
    "EvaluateOptions",
    "Evaluated",
    "Zoo",
    "add_networks",
    "evaluate_zoo",
    "evaluation_pool",
    "import_published",
    "is_zoo",
    "join_table",
    "read_index",
    "read_table",
    "set_properties",
    "write_zoo",
]
