"""`python -m genseg`."""

import os

# Slicer's launcher points ITK at Slicer's own plugins; loaded into another build of ITK they crash it.
os.environ.pop("ITK_AUTOLOAD_PATH", None)

from genseg.cli import main

main()
