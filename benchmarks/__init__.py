"""Measurements, one a file, in the rooms that they measure: `python -m benchmarks.NAME`, whichever room NAME is in."""

from pathlib import Path

__path__ += [str(folder) for folder in sorted(Path(__file__).parent.iterdir()) if folder.is_dir()]
