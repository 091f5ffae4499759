"""Bundles: exported networks with all that is needed to run them. Nothing here imports torch."""
