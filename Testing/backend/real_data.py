"""Where the real scans lie: GENSEG_DATA, or shared/data beside the project. Read in place."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("GENSEG_DATA") or Path(__file__).parents[3] / "shared" / "data")

needs_data = pytest.mark.usefixtures("data")  # which decides what happens where there are none
