from .calls import guard_implementation, guard_wrapper, pick_arguments
from .disabled import DisabledPlugin, disabled_file, disabled_names, set_disabled
from .hook_calls import HookCalls, Reply
from .installed import (
    distribution_name,
    how_to_enable,
    installed_points,
    is_ours,
    own_extras,
    parse_name_list,
    plugin_names,
)
from .marked_copy import copy_function, copy_with_marker
from .problems import (
    SLOW_SECONDS,
    AnswerError,
    PluginNote,
    Problem,
    describe_error,
    failure_of,
    to_plugin_error,
)
from .registry import PluginInfo, PluginRegistry
from .requirements import kind_of

__all__ = [
    "SLOW_SECONDS",
    "AnswerError",
    "DisabledPlugin",
    "HookCalls",
    "PluginInfo",
    "PluginNote",
    "PluginRegistry",
    "Problem",
    "Reply",
    "copy_function",
    "copy_with_marker",
    "describe_error",
    "disabled_file",
    "disabled_names",
    "distribution_name",
    "failure_of",
    "guard_implementation",
    "guard_wrapper",
    "how_to_enable",
    "installed_points",
    "is_ours",
    "kind_of",
    "own_extras",
    "parse_name_list",
    "pick_arguments",
    "plugin_names",
    "set_disabled",
    "to_plugin_error",
]
