from .contract import ContractError, is_same, quiet
from .encoders import check_encoder
from .engines import check_engine
from .example_networks import example_graphs
from .file_formats import check_file_format, require_declining
from .fresh_process import last_line, run_python
from .heads import check_head
from .light_import import HEAVY, check_light_import
from .plugin_host import host_with
from .samplers import check_sampler
from .tiny_zoo import write_tiny_zoo

__all__ = [
    "HEAVY",
    "ContractError",
    "check_encoder",
    "check_engine",
    "check_file_format",
    "check_head",
    "check_light_import",
    "check_sampler",
    "example_graphs",
    "host_with",
    "is_same",
    "last_line",
    "quiet",
    "require_declining",
    "run_python",
    "write_tiny_zoo",
]
