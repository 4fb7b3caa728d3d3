"""The linear segmentation probe on frozen features and its metric."""
