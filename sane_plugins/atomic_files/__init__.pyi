from .plan import require_output_folder, require_outputs
from .private_folder import claimed, locked, private_folder
from .write import append_text, naming, write_all, write_whole

__all__ = [
    "append_text",
    "claimed",
    "locked",
    "naming",
    "private_folder",
    "require_output_folder",
    "require_outputs",
    "write_all",
    "write_whole",
]
