"""Video object segmentation by label propagation, with DAVIS' J and F."""
