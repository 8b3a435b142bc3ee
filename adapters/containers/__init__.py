"""Archives and serialisations, read as data and written with parts replaced."""
