"""One decoder for every family, and the families as data."""
