"""Matrices that stream by, for a few columns: each warp has rows of its own, and goes through all of their columns."""
