"""Products for Hopper GPUs in float16, written in Triton's lower language, Gluon."""
