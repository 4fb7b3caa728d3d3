"""Layers in the forms that take least time, above all on CPUs; the numbers are those of torch's own."""
