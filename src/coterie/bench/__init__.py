"""Measuring: the experts layer at the dimensions of real models, beside the limits of the machine and other libraries.

Nothing outside of this room imports it but the command line.
"""
