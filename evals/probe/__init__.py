"""The segmentation probe on frozen features: settings, images, features, heads, score."""
