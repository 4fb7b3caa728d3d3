"""Preflight: what is wrong with a run, seen before it is queued; pure functions over plain facts."""
