"""What networks cost: parameters, multiply-accumulates; the tables of the ladder."""
