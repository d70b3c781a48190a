"""The panels of the module: everything that touches Qt."""
