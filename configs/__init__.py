"""The recipes, shipped with the package."""
