"""Fields of the pipeline's settings, each with its meaning, unit and origin; imports nothing of ours."""
