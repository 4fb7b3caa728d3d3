"""From a recipe and a site to jobs, or to findings of what would go wrong."""
