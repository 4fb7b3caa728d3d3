"""A recipe and a site become jobs or findings; this program's own processes on this machine."""
