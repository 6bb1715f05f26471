"""Mixture-of-experts models in MLX's format, on the machine you have."""
