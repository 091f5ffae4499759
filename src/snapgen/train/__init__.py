"""Training: the one loop, its state, and the stages that it runs."""
