"""Networks in a pipeline of Ray Data: a class for `map_batches` that adds the columns of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sane_plugins.folder_runs import FolderJob, NetworkRows


class AddColumns:
    """Adds the columns of a job to batches of paths; a network that fails has its `error`.

    Each actor loads the plugins once: `dataset.map_batches(AddColumns, fn_constructor_args=(EmbedJob(),),
    batch_format="pandas", concurrency=4)`.
    """

    def __init__(self, job: FolderJob, path_column: str = "path") -> None:
        self._rows, self._path_column = NetworkRows(job), path_column

    def __call__(self, batch: Any) -> Any:
        """Return a batch, a frame of pandas, with the job's columns."""
        rows = [self._rows(Path(path)) for path in batch[self._path_column]]
        names = ["error", *self._rows.columns]
        return batch.assign(**{name: [row.get(name) for row in rows] for name in names})
