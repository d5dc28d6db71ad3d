"""Overlays, and the HTML report on runs."""

from .overlay import contact_sheet, draw_overlay, save_picture

__all__ = ["contact_sheet", "draw_overlay", "save_picture"]
