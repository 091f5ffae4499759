"""Frozen text encoders, joined as Stable Diffusion 3 joins them."""
