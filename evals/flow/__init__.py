"""Optical flow scores: metrics, classical baselines and the scorer."""
