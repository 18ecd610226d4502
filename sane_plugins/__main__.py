"""`python -m sane_plugins` is the command `sane-plugins`."""

import os
import sys
from contextlib import suppress

# `python -m` searches the working directory before all that is installed; `sane-plugins` does not.
with suppress(OSError):  # it was deleted
    if not getattr(sys.flags, "safe_path", False) and sys.path[:1] == [os.path.realpath(".")]:
        del sys.path[0]

from sane_plugins.cli import main

if __name__ == "__main__":
    main.main()
