"""The whole miniature from nothing, in one resumable command."""
