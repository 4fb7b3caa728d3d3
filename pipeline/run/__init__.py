"""Names and places of a run's files, and what reads and writes them."""
