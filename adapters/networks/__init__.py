"""Graphs from state dicts: from names and sizes, named architectures, trees of modules, a person's own code."""
