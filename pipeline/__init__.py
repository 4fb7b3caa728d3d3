"""mcjepa pipeline: dataset to checkpoint."""
