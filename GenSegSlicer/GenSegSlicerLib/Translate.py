"""Translation of what the user reads: `_("Volume {name}").format(name=…)`.

Inside Slicer this is its own translation; elsewhere, as in the tests, every text stays as it is.
"""

try:
    from slicer.i18n import tr as _
except ImportError:  # no Slicer around

    def _(text: str) -> str:
        """Return `text` unchanged."""
        return text


__all__ = ["_"]
