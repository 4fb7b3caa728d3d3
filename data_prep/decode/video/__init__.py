"""Video files: what a container says, whether it is whole, and the pixels of its frames."""
