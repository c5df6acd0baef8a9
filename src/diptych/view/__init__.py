"""How graphs are drawn."""

from diptych.view.draw import Drawing, draw

__all__ = ["Drawing", "draw"]
