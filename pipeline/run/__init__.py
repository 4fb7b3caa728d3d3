"""A run's folder: the names and places of all its files."""
