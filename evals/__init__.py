"""mcjepa evals: weights to scores."""
