"""Spikes of the loss: a robust z-score of every term over a window of good steps.

    z = (x - median) / (1.4826 MAD + 1e-3 |median|)

Median and MAD (median absolute deviation) are not moved by the spikes themselves; 1.4826 MAD is a standard deviation
for normal noise. The second summand keeps a term that hardly moves from raising an alarm over nothing. Only rises
count: the loss may fall as fast as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mcjepa.pipeline.settings.monitor import SpikeConfig

NORMAL_MAD = 1.4826
LEAST_RELATIVE = 1e-3


@dataclass(frozen=True)
class Spike:
    """A term far above its window."""

    name: str
    value: float
    median: float
    z: float


class SpikeDetector:
    """Compares each step's terms with those of the steps before it."""

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._names: tuple[str, ...] = ()
        self._window = np.empty((0, 0))
        self._seen = 0

    def look(self, terms: Mapping[str, Tensor]) -> list[Spike]:
        """The spikes among a good step's terms; adds them to the window.

        One copy from the device. The window starts anew when a term comes or goes: its old steps say nothing then.
        """
        if not self._config.z:
            return []
        names = tuple(sorted(terms))
        values = np.array(torch.stack([terms[name].detach().float() for name in names]).tolist())
        if names != self._names:
            self._names, self._seen = names, 0
            self._window = np.empty((self._config.window, len(names)))
        filled = self._window[: min(self._seen, self._config.window)]
        found = self._compare(values, filled) if self._seen >= self._config.least else []
        self._window[self._seen % self._config.window] = values
        self._seen += 1
        return found

    def _compare(self, values: np.ndarray, window: np.ndarray) -> list[Spike]:
        median = np.median(window, axis=0)
        spread = NORMAL_MAD * np.median(np.abs(window - median), axis=0) + LEAST_RELATIVE * np.abs(median) + 1e-12
        z = (values - median) / spread
        return [
            Spike(name, float(values[i]), float(median[i]), float(z[i]))
            for i, name in enumerate(self._names)
            if z[i] > self._config.z
        ]
