"""Under tox the installed wheel is tested, also in processes that tests start; never the tree beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sane_plugins

ROOT = Path(__file__).parents[2]
CODE = "import sane_onnx, sane_plugins; print(sane_onnx.__file__, sane_plugins.__file__)"


@pytest.mark.skipif("TOX_ENV_DIR" not in os.environ, reason="only tox installs the wheel")
def test_what_is_imported_is_the_wheel() -> None:
    told = subprocess.check_output([sys.executable, "-c", CODE], cwd=ROOT, text=True)
    for imported in (*told.split(), str(sane_plugins.__file__)):
        assert Path(imported).is_relative_to(os.environ["TOX_ENV_DIR"])
