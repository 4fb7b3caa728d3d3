"""Flow and features of anybody's frames and videos, as files."""
