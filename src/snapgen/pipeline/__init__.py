"""Turns prompts into pictures: the diffusers pipeline, the bundled models, strict loading."""
