"""The engine: the only word that is spoken to DeepSpeed."""
