"""Frozen teachers and their stored targets."""
