"""The rooms of the GenSegSlicer module: one class a file, free of Qt; scene and logics are passed in."""
