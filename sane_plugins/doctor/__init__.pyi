from .diagnosis import Diagnosis, examine
from .extras import Extra, list_extras
from .installation import list_devices, list_versions
from .plugin_report import PluginReport
from .self_test import Trial, run_self_test

__all__ = [
    "Diagnosis",
    "Extra",
    "PluginReport",
    "Trial",
    "examine",
    "list_devices",
    "list_extras",
    "list_versions",
    "run_self_test",
]
