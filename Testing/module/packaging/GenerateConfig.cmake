# Slicer writes a <Extension>Config.cmake here for other extensions; nothing of it is installed.
