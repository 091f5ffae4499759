"""The networks; each knows only its own configuration."""
