"""Graphs: what is known of them, the axis algebra, one rule per operator, and the spaces that follow."""
