"""What runs on the GPU: Triton functions, and nothing that launches them."""
