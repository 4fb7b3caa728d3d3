"""Which streams take part in a step, a function of the step alone.

    combined          every step takes samples of every stream (the paper's best)
    alternate-batch   views, pairs, views, pairs, ...
    alternate-epoch   an epoch of the views, as many steps of the pairs, and again: both see as much, whatever the
                      lengths of their datasets

A stream's own step is the number of earlier steps in which it took part, so both positions follow from one integer,
and all ranks agree on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Sampling = Literal["combined", "alternate-batch", "alternate-epoch"]
TURN_ORDER = ("views", "pairs")
"""Content first, as the paper trains its first epochs."""


class StreamInterleaving:
    """How the streams of a run alternate."""

    def __init__(self, sampling: Sampling, epoch_steps: Mapping[str, int]) -> None:
        """Lay out one round of the streams.

        Args:
            sampling: the mode.
            epoch_steps: steps of an epoch of each stream that the run has; one stream alone is always there.
        """
        self._streams = [name for name in TURN_ORDER if name in epoch_steps]
        self._first_epoch = epoch_steps[self._streams[0]]
        if sampling == "combined":
            self._lengths = []
        elif sampling == "alternate-batch":
            self._lengths = [1] * len(self._streams)
        else:
            self._lengths = [self._first_epoch] * len(self._streams)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the run in an epoch of the views (of the pairs without views), the other stream's steps among them.

        >>> StreamInterleaving("alternate-batch", {"views": 3, "pairs": 2}).steps_per_epoch
        6
        >>> StreamInterleaving("alternate-epoch", {"views": 3, "pairs": 2}).steps_per_epoch
        6
        """
        return self._first_epoch * sum(self._lengths) // self._lengths[0] if self._lengths else self._first_epoch

    def at(self, step: int) -> dict[str, int]:
        """The streams that take part in a step, each with its own step.

        >>> interleaving = StreamInterleaving("alternate-epoch", {"views": 3, "pairs": 2})
        >>> [interleaving.at(step) for step in range(7)]
        [{'views': 0}, {'views': 1}, {'views': 2}, {'pairs': 0}, {'pairs': 1}, {'pairs': 2}, {'views': 3}]
        """
        if not self._lengths:
            return dict.fromkeys(self._streams, step)
        rounds, place = divmod(step, sum(self._lengths))
        for name, length in zip(self._streams, self._lengths, strict=True):
            if place < length:
                return {name: rounds * length + place}
            place -= length
        raise AssertionError("a place within the round belongs to one of its streams")
