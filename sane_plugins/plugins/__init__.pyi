from .calls import guard_implementation, guard_wrapper, pick_arguments
from .disabled import disabled_file, disabled_names, set_disabled
from .hook_calls import HookCalls, Reply
from .installed import (
    distribution_name,
    distribution_version,
    how_to_enable,
    installed_points,
    is_enabled,
    is_ours,
    load_point,
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
    Record,
    describe_error,
    disable_line,
    failure_of,
    to_plugin_error,
)
from .requirements import kind_of
from .validation import (
    describe_oddities,
    hook_functions,
    make_for_host,
    require_arguments,
    require_supported,
)

__all__ = [
    "SLOW_SECONDS",
    "AnswerError",
    "HookCalls",
    "PluginNote",
    "Problem",
    "Record",
    "Reply",
    "copy_function",
    "copy_with_marker",
    "describe_error",
    "describe_oddities",
    "disable_line",
    "disabled_file",
    "disabled_names",
    "distribution_name",
    "distribution_version",
    "failure_of",
    "guard_implementation",
    "guard_wrapper",
    "hook_functions",
    "how_to_enable",
    "installed_points",
    "is_enabled",
    "is_ours",
    "kind_of",
    "load_point",
    "make_for_host",
    "own_extras",
    "parse_name_list",
    "pick_arguments",
    "plugin_names",
    "require_arguments",
    "require_supported",
    "set_disabled",
    "to_plugin_error",
]
