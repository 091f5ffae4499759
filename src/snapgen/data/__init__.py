"""Captioned pictures for training: where they come from, their order, their latents."""
