"""What networks cost: multiply-accumulates and parameters, counted in one place."""
