"""A dataset's card: one HTML file that shows what is in it and what was left out."""
