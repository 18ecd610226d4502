from .add import Added, AddOptions, add_networks
from .evaluate import Evaluated, EvaluateOptions, evaluate_zoo
from .fingerprint_index import IndexedZoo, index_zoo
from .folder_walk import FolderContents, walk_each_folder, walk_folder
from .index import Entry, is_zoo, read_index
from .property_table import join_table, read_table
from .run_names import RunName, name_by_file, name_by_number, name_by_pattern
from .store import (
    Zoo,
    evaluation_pool,
    import_published,
    require_new_zoo,
    set_properties,
    write_zoo,
)

__all__ = [
    "AddOptions",
    "Added",
    "Entry",
    "EvaluateOptions",
    "Evaluated",
    "FolderContents",
    "IndexedZoo",
    "RunName",
    "Zoo",
    "add_networks",
    "evaluate_zoo",
    "evaluation_pool",
    "import_published",
    "index_zoo",
    "is_zoo",
    "join_table",
    "name_by_file",
    "name_by_number",
    "name_by_pattern",
    "read_index",
    "read_table",
    "require_new_zoo",
    "set_properties",
    "walk_each_folder",
    "walk_folder",
    "write_zoo",
]
