"""The engine: the only part that speaks to DeepSpeed."""
