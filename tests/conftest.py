"""What all tests share: where the real data lie, and a loud skip where they do not."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def sane_data() -> Path:
    """Return the folder with real data sets, checkpoints, zoos and ONNX files."""
    folder = Path(os.environ.get("SANE_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"REAL DATA ABSENT: no folder {folder}; set SANE_DATA to run this test")
    return folder
