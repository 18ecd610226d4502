from .archives import Archive
from .artifact import (
    DENOISER,
    EMBEDDINGS,
    HEADER,
    PRETRAINING_STATE,
    PROPERTY_HEADS,
    SANE_MODEL,
    ZOO_TRAINING_STATE,
    ArtifactKind,
    StoredRows,
    fill_module,
    load_artifact,
    read_config,
    read_description,
    require_like,
    save_artifact,
    stream_artifact,
)
from .guards import exists, require_file, source_errors
from .lazy_tensors import LazyTensors
from .reading import open_file
from .sharded import index_in, shard_names
from .source_files import files_read
from .state_dict import from_state_dict
from .suffixes import ARRAYS, CHECKPOINTS, INDEX, SCRIPTS
from .writing import (
    check_save,
    save_arrays,
    save_checkpoint,
    save_network,
    save_safetensors,
    save_sharded,
    side_files,
    sidecar,
    sidecar_writes,
)

__all__ = [
    "ARRAYS",
    "CHECKPOINTS",
    "DENOISER",
    "EMBEDDINGS",
    "HEADER",
    "INDEX",
    "PRETRAINING_STATE",
    "PROPERTY_HEADS",
    "SANE_MODEL",
    "SCRIPTS",
    "ZOO_TRAINING_STATE",
    "Archive",
    "ArtifactKind",
    "LazyTensors",
    "StoredRows",
    "check_save",
    "exists",
    "files_read",
    "fill_module",
    "from_state_dict",
    "index_in",
    "load_artifact",
    "open_file",
    "read_config",
    "read_description",
    "require_file",
    "require_like",
    "save_arrays",
    "save_artifact",
    "save_checkpoint",
    "save_network",
    "save_safetensors",
    "save_sharded",
    "shard_names",
    "side_files",
    "sidecar",
    "sidecar_writes",
    "source_errors",
    "stream_artifact",
]
