"""What all tests share: where the real data lie, and a loud skip where they do not."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

with suppress(ImportError):  # tests of hosts have none
    from hypothesis import HealthCheck, settings

    # No time limit that a busy machine breaks.
    settings.register_profile(
        "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("patient")


@pytest.fixture(scope="session")
def sane_data() -> Path:
    """Return the folder with real data sets, checkpoints, zoos and ONNX files."""
    folder = Path(os.environ.get("SANE_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"REAL DATA ABSENT: no folder {folder}; set SANE_DATA to run this test")
    return folder
