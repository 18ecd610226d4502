"""Read the arrays of `.npz` files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from sane_plugins.errors import SaneError, TaskError, first_line
from sane_plugins.formats import Archive
from sane_plugins.tasks.image_files import Array


def read_npz(
    path: Path, needed: Sequence[str], also: Sequence[str], told: Sequence[str] = ()
) -> dict[str, Array]:
    """Return the arrays named in `needed`, and those named in `also` and `told` that are present.

    What is `told` is left out where it is no plain array. Raises `TaskError` if one that is needed is
    missing, or if this is not a file of plain arrays.
    """
    try:
        Archive(path)  # refuses zip bombs
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            names = list(file.keys())
            arrays: dict[str, Array] = {k: file[k] for k in (*needed, *also) if k in names}
            for key in (key for key in told if key in names):
                with suppress(ValueError):  # of pickled objects
                    arrays[key] = file[key]
    except Exception as error:  # damaged bytes may make NumPy raise anything
        reason = error.found if isinstance(error, SaneError) else first_line(error)
        raise TaskError(
            path,
            f"it cannot be read as an .npz file of plain arrays ({reason})",
            "a task file is one that numpy.savez wrote, without pickled objects",
            "save it again with numpy.savez, or give a folder with one sub-folder per class",
        ) from error
    if missing := [key for key in needed if key not in arrays]:
        raise TaskError(
            path,
            f"it holds {', '.join(sorted(names)) or 'nothing'}, no {' and no '.join(missing)}",
            f"{' and '.join(needed)} are needed",
            "save the arrays under these names",
        )
    return arrays
