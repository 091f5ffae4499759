"""The paper's losses as pure functions."""
