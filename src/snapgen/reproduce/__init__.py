"""Trains and scores the whole miniature from nothing, in one resumable command."""
