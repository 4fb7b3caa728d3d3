"""One training step: what happens between two batches."""
