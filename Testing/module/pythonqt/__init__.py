"""Stand-ins for Slicer's `qt`, `ctk` and `slicer` in tests: PySide6 underneath, PythonQt's habits in front.

Nothing of Slicer's own code is here. The habits were read in PythonQt's sources and measured (guides).
What the stand-ins accept and Slicer refuses is a bug of the stand-ins: report it as such.
"""

import os

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# The scene's views are rendered off screen by VTK; Qt draws its widgets with its raster engine.
os.environ.setdefault("QT_LOGGING_RULES", "qt.qpa.*=false")
