from .archives import Archive
from .change_of_type import Rounding, with_dtype
from .dequantize import Content
from .detection import content_form
from .foreign.foreign_forms import foreign_form, holds_onnx
from .foreign.foreign_table import ForeignForm
from .guards import exists, open_until_collected, reopen_later, require_file, source_errors
from .in_folders.declared import declared_architecture, declared_settings
from .in_folders.folder_members import folder_member
from .in_folders.folders import Located, locate, may_be_network
from .in_folders.hub_cache import cached_path, is_cache_internal, is_hub_name
from .in_folders.model_caches import cached_networks
from .limits import require_names, require_shape, require_tensor_count
from .reading import open_file
from .safetensors_files.artifact import (
    DENOISER,
    EMBEDDINGS,
    FINGERPRINTS,
    HEADER,
    PRETRAINING_STATE,
    PROPERTY_HEADS,
    SANE_MODEL,
    ZOO_FEATURES,
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
from .safetensors_files.lazy_tensors import LazyTensors
from .safetensors_files.sharded import shard_names
from .source_files import files_read
from .state_dict import from_state_dict
from .stored_metadata import read_metadata
from .stored_origin import InitialWeights, initial_weights
from .suffixes import ARRAYS, CHECKPOINTS, EXPORTED, HUB, INDEX, SCRIPTS
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
    "EXPORTED",
    "FINGERPRINTS",
    "HEADER",
    "HUB",
    "INDEX",
    "PRETRAINING_STATE",
    "PROPERTY_HEADS",
    "SANE_MODEL",
    "SCRIPTS",
    "ZOO_FEATURES",
    "ZOO_TRAINING_STATE",
    "Archive",
    "ArtifactKind",
    "Content",
    "ForeignForm",
    "InitialWeights",
    "LazyTensors",
    "Located",
    "Rounding",
    "StoredRows",
    "cached_networks",
    "cached_path",
    "check_save",
    "content_form",
    "declared_architecture",
    "declared_settings",
    "exists",
    "files_read",
    "fill_module",
    "folder_member",
    "foreign_form",
    "from_state_dict",
    "holds_onnx",
    "initial_weights",
    "is_cache_internal",
    "is_hub_name",
    "load_artifact",
    "locate",
    "may_be_network",
    "open_file",
    "open_until_collected",
    "read_config",
    "read_description",
    "read_metadata",
    "reopen_later",
    "require_file",
    "require_like",
    "require_names",
    "require_shape",
    "require_tensor_count",
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
    "with_dtype",
]
