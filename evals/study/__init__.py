"""Several trainings as one experiment: what is measured, which differences are more than chance, and the tables."""
