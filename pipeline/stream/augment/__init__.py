"""Augmentations of frame pairs and of image views."""
