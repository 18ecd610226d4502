from .archives import Archive
from .files import CHECKPOINTS, SCRIPTS, open_file
from .guards import require_file, sealed
from .safetensors_files import HEADER, LazyTensors
from .sharded import INDEX, index_in
from .state_dict import from_state_dict
from .writing import (
    check_save,
    save_arrays,
    save_checkpoint,
    save_network,
    save_safetensors,
    save_sharded,
    sidecar,
    sidecar_writes,
)

__all__ = [
    "CHECKPOINTS",
    "HEADER",
    "INDEX",
    "SCRIPTS",
    "Archive",
    "LazyTensors",
    "check_save",
    "from_state_dict",
    "index_in",
    "open_file",
    "require_file",
    "save_arrays",
    "save_checkpoint",
    "save_network",
    "save_safetensors",
    "save_sharded",
    "sealed",
    "sidecar",
    "sidecar_writes",
]
