"""Bridges to other libraries, one module each. Nothing of it is imported unless it is asked for by name."""
