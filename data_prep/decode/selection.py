"""Which frames of an input become samples: pure arithmetic on presentation times and frame numbers.

Frames are numbered in presentation order. With a rate, some of them are selected first; a sample's step and the
stride of its start then count selected frames.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

TIME_SLACK_S = 1e-6  # presentation times are rounded to their clock's ticks


def frames_at_rate(times_s: FloatArray, rate_hz: float) -> IntArray:
    """Numbers of the frames that are shown at the times k / rate_hz after the first one.

    The frame shown at a time is the last one that has begun; no time lies after the last frame's begin. A frame
    that is shown at several of these times is taken once: a rate above the video's own gives every frame.

    Args:
        times_s: Presentation times, increasing, (frames,).
        rate_hz: Frames a second; 0: every frame.

    >>> frames_at_rate(np.array([5.0, 5.1, 5.25, 5.3, 5.4]), 10).tolist()
    [0, 1, 3, 4]
    >>> frames_at_rate(np.array([0.0, 0.5, 1.0]), 60).tolist()
    [0, 1, 2]
    """
    if not rate_hz or not len(times_s):
        return np.arange(len(times_s), dtype=np.int64)
    # Frame n is shown until n + 1 begins: it is taken when a tick falls into this time.
    since_first_s = times_s - times_s[0]
    tick = np.ceil((since_first_s - TIME_SLACK_S) * rate_hz)  # the first one at or after a frame's begin
    last_shown = tick[-1] <= (since_first_s[-1] + TIME_SLACK_S) * rate_hz
    return np.flatnonzero(np.append(tick[1:] > tick[:-1], last_shown)).astype(np.int64)


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
    needed = np.zeros(int(starts.max(initial=-1)) + (frames - 1) * step + 1, np.bool_)
    for k in range(frames):
        needed[starts + k * step] = True
    return np.flatnonzero(needed).astype(np.int64)
