"""Optical flow sets: file formats, and readers of pairs with ground truth."""
