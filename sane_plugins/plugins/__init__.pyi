from .calls import guard_implementation, guard_wrapper, pick_arguments
from .hook_calls import HookCalls
from .installed import (
    distribution_name,
    distribution_version,
    installed_points,
    is_enabled,
    is_ours,
    load_point,
    parse_name_list,
    plugin_names,
)
from .marked_copy import copy_function, copy_with_marker
from .problems import (
    SLOW_SECONDS,
    AnswerError,
    PluginNote,
    Problem,
    Record,
    describe_error,
    failure_of,
    to_plugin_error,
)
from .validation import describe_oddities, hook_functions, make_for_host, require_supported

__all__ = [
    "SLOW_SECONDS",
    "AnswerError",
    "HookCalls",
    "PluginNote",
    "Problem",
    "Record",
    "copy_function",
    "copy_with_marker",
    "describe_error",
    "describe_oddities",
    "distribution_name",
    "distribution_version",
    "failure_of",
    "guard_implementation",
    "guard_wrapper",
    "hook_functions",
    "installed_points",
    "is_enabled",
    "is_ours",
    "load_point",
    "make_for_host",
    "parse_name_list",
    "pick_arguments",
    "plugin_names",
    "require_supported",
    "to_plugin_error",
]
