"""Recipes: YAML to typed settings; the only place that sees the settings of all rooms."""
