"""Which frames of an input become samples: pure arithmetic on presentation times and frame numbers.

Frames are numbered in presentation order. With a rate, some of them are selected first; a sample's step and the
stride of its start then count selected frames.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

TIME_SLACK_S = 1e-6  # presentation times are rounded to their clock's ticks


def frames_at_rate(times_s: FloatArray, rate_hz: float, stretches: IntArray | None = None) -> IntArray:
    """Numbers of the frames that are shown at the times k / rate_hz after the first one of their stretch.

    The frame shown at a time is the last one that has begun; no time lies after the last frame's begin. A frame
    that is shown at several of these times is taken once: a rate above the video's own gives every frame.

    Args:
        times_s: Presentation times, increasing within a stretch, (frames,).
        rate_hz: Frames a second; 0: every frame.
        stretches: Number of the stretch of every frame, each with times of its own, (frames,); None: one stretch.

    >>> frames_at_rate(np.array([5.0, 5.1, 5.25, 5.3, 5.4]), 10).tolist()
    [0, 1, 3, 4]
    >>> frames_at_rate(np.array([0.0, 0.5, 1.0]), 60).tolist()
    [0, 1, 2]
    """
    if not rate_hz or not len(times_s):
        return np.arange(len(times_s), dtype=np.int64)
    if stretches is not None and stretches[-1] > 0:
        starts = np.flatnonzero(np.diff(stretches, prepend=-1))
        parts = np.split(times_s, starts[1:])
        return np.concatenate([s + frames_at_rate(part, rate_hz) for s, part in zip(starts, parts, strict=True)])
    # Frame n is shown until n + 1 begins: it is taken when a tick falls into this time.
    since_first_s = times_s - times_s[0]
    tick = np.ceil((since_first_s - TIME_SLACK_S) * rate_hz)  # the first one at or after a frame's begin
    last_shown = tick[-1] <= (since_first_s[-1] + TIME_SLACK_S) * rate_hz
    return np.flatnonzero(np.append(tick[1:] > tick[:-1], last_shown)).astype(np.int64)


def unbroken_runs(times_s: FloatArray, stretches: IntArray, max_gap_s: float) -> IntArray:
    """Number of the run of every frame: a new one begins with a stretch, and after a gap.

    Args:
        times_s: Presentation times, increasing within a stretch, (frames,).
        stretches: Number of the stretch of every frame, (frames,).
        max_gap_s: Longest time between neighbours of a run, s.

    >>> unbroken_runs(np.array([0.0, 0.5, 9.0, 9.5, 9.4, 9.8]), np.array([0, 0, 0, 0, 1, 1]), 1.0).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    breaks = (np.diff(stretches) != 0) | (np.diff(times_s) > max_gap_s + TIME_SLACK_S)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(breaks, dtype=np.int64)])[: len(times_s)]


def choose_starts(runs: IntArray, frames: int, step: int, stride: int, max_samples: int) -> IntArray:
    """First frames of the samples cut from one input; no sample leaves its run.

    Args:
        runs: Number of the run of every frame, (frames,).
        frames: Frames per sample.
        step: Distance of a sample's frames.
        stride: Distance of consecutive starts within a run.
        max_samples: Most samples, spread evenly over all; 0: no limit.

    Returns:
        Increasing frame numbers, empty when every run is shorter than one sample.

    >>> choose_starts(np.zeros(10, int), frames=2, step=1, stride=3, max_samples=0).tolist()
    [0, 3, 6]
    >>> choose_starts(np.zeros(100, int), frames=2, step=1, stride=1, max_samples=3).tolist()
    [0, 49, 98]
    >>> choose_starts(np.array([0, 0, 0, 1, 1, 1, 1]), frames=2, step=1, stride=2, max_samples=0).tolist()
    [0, 3, 5]
    """
    bounds = [0, *(np.flatnonzero(np.diff(runs)) + 1).tolist(), len(runs)]
    span = (frames - 1) * step
    starts = np.concatenate([np.arange(a, b - span, stride, dtype=np.int64) for a, b in pairwise(bounds)])
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
