"""Segmentation sets: readers of labelled images and their tables of classes."""
