"""Networks; each knows its configuration and nothing else."""
