"""Small things of the window: arrays as pictures, icons for light and dark windows, labels that take no empty room."""

from pathlib import Path

import qt
import slicer

ICONS = Path(__file__).parents[2] / "Resources" / "Icons"


def iconOf(picture) -> object:
    """uint8 [h, w, 3] → QIcon."""
    height, width = picture.shape[:2]
    header = f"P6 {width} {height} 255\n".encode("ascii")
    pixmap = qt.QPixmap()
    pixmap.loadFromData(qt.QByteArray(header + picture.tobytes()))
    return qt.QIcon(pixmap)


def icon(name: str) -> object:
    """The icon Resources/Icons/<name>.svg in the variant that suits the window's colors."""
    background = slicer.app.palette().color(qt.QPalette.Window)
    variant = "dark" if background.lightness() < 128 else "light"
    return qt.QIcon(str(ICONS / variant / f"{name}.svg"))


def show(label, text: str) -> None:
    """A text in a label that is only there while it says something."""
    label.text = text
    label.visible = bool(text)
