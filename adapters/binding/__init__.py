"""A graph whose exporter lost the names, and the arrays that it was made from."""
