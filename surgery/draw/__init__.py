"""A graph with its spaces in colour, as one HTML file that needs nothing else.

analysis ──boxes──▶ what is shown ──layers──▶ where it stands ──page──▶ text
"""

from surgery.draw.page import draw

__all__ = ["draw"]
