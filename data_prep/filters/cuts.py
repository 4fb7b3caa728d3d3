"""Scene cuts: PySceneDetect's content score of two frames.

Loading PySceneDetect takes most of a second and starts the system's ffmpeg once, to see whether there is one: load it
before memory is capped.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scenedetect import FrameTimecode, StatsManager
from scenedetect.detectors import ContentDetector

ByteArray = npt.NDArray[np.uint8]

TIMES = (FrameTimecode(0, 1.0), FrameTimecode(1, 1.0))
EDGE_KERNEL_PX = 3
"""For edges that PySceneDetect finds whenever it keeps scores; they weigh nothing in the score."""


def content_score(rgb0: ByteArray, rgb1: ByteArray) -> float:
    """Mean change of hue (0 to 180), saturation and value (0 to 255) over all pixels and the three channels.

    Args:
        rgb0: Earlier frame (H, W, 3), already shrunk.
        rgb1: Later frame, of the same size.
    """
    detector = ContentDetector(kernel_size=EDGE_KERNEL_PX)
    detector.stats_manager = StatsManager()
    for time, rgb in zip(TIMES, (rgb0, rgb1), strict=True):
        detector.process_frame(time, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return float(detector.stats_manager.get_metrics(TIMES[1], [ContentDetector.FRAME_SCORE_KEY])[0])
