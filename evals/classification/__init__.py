"""Image classification on frozen features: nearest neighbours and a linear head."""
