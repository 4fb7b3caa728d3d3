"""Which frames of an input become samples: pure arithmetic on frame numbers in presentation order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def choose_starts(frame_count: int, frames: int, step: int, stride: int, max_samples: int) -> IntArray:
    """First frames of the samples cut from one input.

    Args:
        frame_count: Frames of the input.
        frames: Frames a sample.
        step: Distance of a sample's frames.
        stride: Distance of consecutive starts.
        max_samples: Most samples, spread evenly over all; 0: no limit.

    Returns:
        Increasing frame numbers, empty when the input is shorter than one sample.

    >>> choose_starts(10, frames=2, step=1, stride=3, max_samples=0).tolist()
    [0, 3, 6]
    >>> choose_starts(100, frames=2, step=1, stride=1, max_samples=3).tolist()
    [0, 49, 98]
    """
    last = frame_count - 1 - (frames - 1) * step
    starts = np.arange(0, last + 1, stride, dtype=np.int64)
    if 0 < max_samples < len(starts):
        chosen = np.linspace(0, len(starts) - 1, max_samples) if max_samples > 1 else np.array([len(starts) // 2])
        starts = starts[np.rint(chosen).astype(np.int64)]
    return starts


def needed_frames(starts: IntArray, frames: int, step: int) -> IntArray:
    """All frame numbers that samples at `starts` need, increasing, each once."""
    return np.unique(starts[:, None] + step * np.arange(frames, dtype=np.int64))
