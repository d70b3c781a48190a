"""Where the real scans lie: GENSEG_DATA, or shared/data beside the project. Read in place."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("GENSEG_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real scans: GENSEG_DATA, or shared/data beside the project. Never skipped in CI."""
    if not (DATA / "hippocampus" / "dataset.json").exists():
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"real scans are needed, but {DATA} does not hold them: set GENSEG_DATA to their folder")
    return DATA


needs_data = pytest.mark.usefixtures("data")  # which decides what happens where there are none
