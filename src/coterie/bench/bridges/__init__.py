"""Libraries that a bridge leads to, measured as they are and with our kernels in them."""
