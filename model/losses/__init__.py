"""The terms of the joint loss, one a file (method sections 2.1 to 2.10)."""
