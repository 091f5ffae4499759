"""Captioned pictures for training: sources, their order, their latents."""
