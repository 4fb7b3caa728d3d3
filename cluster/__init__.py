"""mcjepa cluster: where command lines run."""
