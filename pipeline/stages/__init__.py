"""One stage of a recipe from its beginning to its record, as a command asks for it; quickstart runs them in turn."""
