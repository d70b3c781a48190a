"""Where the real scans lie: GENSEG_DATA, or shared/data beside the project. Read in place."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("GENSEG_DATA") or Path(__file__).parents[3] / "shared" / "data")
REASON = f"real scans are needed, but {DATA} does not hold them: set GENSEG_DATA to their folder"
PRESENT = (DATA / "hippocampus" / "dataset.json").exists()

# In CI nothing is skipped: a test without its scans fails there.
needs_data = pytest.mark.skipif(not PRESENT and not os.environ.get("CI"), reason=REASON)
