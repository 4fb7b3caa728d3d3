"""Recipes: YAML to typed settings; the only part that sees the settings of all rooms."""
