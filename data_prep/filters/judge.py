"""Measures a sample's frames, and says whether a filter drops the sample.

Scores of a clip: the greatest change and the mean motion between its neighbouring frames, the luma of its darkest
frame, and the bars of the frame with the smallest ones (bars stay, a dark edge of one frame is no bar). Thresholds are
compared with scores as they are stored, so `drop` drops just what `score` shows beyond them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.filters.measures import border_fraction, flow_length_px
from mcjepa.data_prep.settings import FilterMode, FiltersConfig

if TYPE_CHECKING:
    from mcjepa.data_prep.filters.leakage import LeakageIndex

ByteArray = npt.NDArray[np.uint8]
Measured = TypeVar("Measured")

SMALL_PX = 256
"""Longest side of the pictures that cuts and motion are measured on; PySceneDetect shrinks to the same, as here."""
DIGITS = 4
MOTION_DIGITS = 2
"""Flow is float32 arithmetic: another kind of processor may differ further down, and shards must not."""


@dataclass(frozen=True)
class Verdict:
    """What a sample scored, and which filter drops it."""

    scores: dict[str, float | str]
    filter: str = ""
    """`cut`, `static`, `fast`, `border`, `dark` or `leakage`; empty: the sample is kept."""
    reason: str = ""


class SampleJudge:
    """Judges the samples of one input, in the order of their first frames."""

    def __init__(self, config: FiltersConfig, leakage: LeakageIndex | None = None) -> None:
        """Load the libraries that these filters need: make one judge before memory is capped.

        Args:
            config: Modes and thresholds.
            leakage: The evaluation frames to guard; needed unless that filter is off.

        Raises:
            ValueError: there is a leakage filter but no index.
        """
        if config.leakage.mode != "off" and leakage is None:
            raise ValueError("the leakage filter is on without an index of evaluation frames; expected one")
        self._config = config
        self._index = leakage
        self._known: dict[tuple[str, tuple[int, ...]], Any] = {}
        wanted: list[tuple[FilterMode, Callable[[Sequence[int], Sequence[ByteArray]], Verdict]]] = [
            (config.leakage.mode, self._leakage),
            (config.dark.mode, self._dark),
            (config.border.mode, self._border),
            (config.cut.mode, self._cut),
            (config.motion.mode, self._motion),
            (config.duplicates.mode, self._fingerprint),
        ]
        self._filters = [(mode, measure) for mode, measure in wanted if mode != "off"]
        if config.cut.mode != "off":
            from mcjepa.data_prep.filters.cuts import content_score

            self._content_score = content_score
        if config.leakage.mode != "off" or config.duplicates.mode != "off":
            from mcjepa.data_prep.filters.phash import frame_hash, hash_to_hex

            self._frame_hash, self._hash_to_hex = frame_hash, hash_to_hex

    def judge(self, numbers: Sequence[int], frames: Sequence[ByteArray]) -> Verdict:
        """Scores of a sample, and the first filter that drops it: leakage, dark, border, cut, static or fast.

        Args:
            numbers: The frames' numbers in the input; a number that comes again is not measured again.
            frames: RGB (H, W, 3) as stored, all of one size.
        """
        self._known = {key: value for key, value in self._known.items() if key[1][0] >= numbers[0]}
        scores: dict[str, float | str] = {}
        name = reason = ""
        for mode, measure in self._filters:
            found = measure(numbers, frames)
            scores |= found.scores
            if mode == "drop" and found.filter and not name:
                name, reason = found.filter, found.reason
        return Verdict(scores, name, reason)

    def _leakage(self, numbers: Sequence[int], frames: Sequence[ByteArray]) -> Verdict:
        scores = self._fingerprint(numbers, frames).scores
        for number, rgb in zip(numbers, frames, strict=True):
            match = self._once("match", (number,), partial(self._match, number, rgb))
            if match is not None:
                reason = f"leakage: frame {number} looks like {match}"
                return Verdict({**scores, "leakage": match}, "leakage", reason)
        return Verdict(scores)

    def _match(self, number: int, rgb: ByteArray) -> str | None:
        assert self._index is not None
        value = self._hash(number, rgb)
        return None if value is None else self._index.match(value, self._config.leakage.max_bits)

    def _fingerprint(self, numbers: Sequence[int], frames: Sequence[ByteArray]) -> Verdict:
        """The hash of the first frame; inputs are compared by it once all are made (`filters.duplicates`)."""
        return Verdict({"phash": self._hash_to_hex(self._hash(numbers[0], frames[0]))})

    def _hash(self, number: int, rgb: ByteArray) -> int | None:
        return self._once("phash", (number,), partial(self._frame_hash, rgb))

    def _dark(self, numbers: Sequence[int], frames: Sequence[ByteArray]) -> Verdict:
        score = self._least("luma", numbers, frames, _mean_luma)
        limit = self._config.dark.min_luma
        return _verdict("luma", score, "dark" if score < limit else "", f"mean luma {score:g} below {limit:g}")

    def _border(self, numbers: Sequence[int], frames: Sequence[ByteArray]) -> Verdict:
        score = self._least("border", numbers, frames, _border_fraction)
        limit = self._config.border.max_fraction
        why = f"bars cover {score:g} of the frame, above {limit:g}"
        return _verdict("border", score, "border" if score > limit else "", why)

    def _least(
        self, name: str, numbers: Sequence[int], frames: Sequence[ByteArray], measure: Callable[[ByteArray], float]
    ) -> float:
        values = (self._once(name, (n,), partial(measure, rgb)) for n, rgb in zip(numbers, frames, strict=True))
        return round(min(values), DIGITS)

    def _cut(self, numbers: Sequence[int], frames: Sequence[ByteArray]) -> Verdict:
        changes = self._between("cut", numbers, frames, self._content_change)
        if not changes:
            return Verdict({})
        score, limit = round(max(changes), DIGITS), self._config.cut.max_score
        return _verdict("cut", score, "cut" if score > limit else "", f"content score {score:g} above {limit:g}")

    def _motion(self, numbers: Sequence[int], frames: Sequence[ByteArray]) -> Verdict:
        lengths = self._between("motion", numbers, frames, _motion_px)
        if not lengths:
            return Verdict({})
        score, config = round(sum(lengths) / len(lengths), MOTION_DIGITS), self._config.motion
        if score < config.min_px:
            return _verdict("motion_px", score, "static", f"mean flow {score:g} px below {config.min_px:g}")
        too_fast = "fast" if score > config.max_px else ""
        return _verdict("motion_px", score, too_fast, f"mean flow {score:g} px above {config.max_px:g}")

    def _between(
        self,
        name: str,
        numbers: Sequence[int],
        frames: Sequence[ByteArray],
        measure: Callable[[_Small, _Small], float | None],
    ) -> list[float]:
        """What is measured between neighbours; nothing for a single image, or where frames are too small for it."""
        found = []
        for first, second in pairwise(zip(numbers, frames, strict=True)):
            value = self._once(name, (first[0], second[0]), partial(self._compare, measure, first, second))
            found += [] if value is None else [value]
        return found

    def _compare(
        self,
        measure: Callable[[_Small, _Small], float | None],
        first: tuple[int, ByteArray],
        second: tuple[int, ByteArray],
    ) -> float | None:
        return measure(self._small(*first), self._small(*second))

    def _content_change(self, first: _Small, second: _Small) -> float:
        return self._content_score(first.rgb, second.rgb)

    def _small(self, number: int, rgb: ByteArray) -> _Small:
        return self._once("small", (number,), partial(_shrink, rgb))

    def _once(self, name: str, numbers: tuple[int, ...], compute: Callable[[], Measured]) -> Measured:
        """What was measured on these frames before, else it is measured now."""
        key = (name, numbers)
        if key not in self._known:
            self._known[key] = compute()
        found: Measured = self._known[key]
        return found


@dataclass(frozen=True)
class _Small:
    """A shrunk frame."""

    rgb: ByteArray
    scale: float
    """Pixels of the stored frame a pixel of this one."""


def _shrink(rgb: ByteArray) -> _Small:
    scale = max(rgb.shape[:2]) / SMALL_PX
    if scale <= 1:
        return _Small(rgb, 1.0)
    size = (max(1, round(rgb.shape[1] / scale)), max(1, round(rgb.shape[0] / scale)))
    return _Small(np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR), np.uint8), scale)


def _motion_px(first: _Small, second: _Small) -> float | None:
    length = flow_length_px(_grey(first.rgb), _grey(second.rgb))
    return None if length is None else length * first.scale


def _mean_luma(rgb: ByteArray) -> float:
    return float(cv2.mean(_grey(rgb))[0])


def _border_fraction(rgb: ByteArray) -> float:
    return border_fraction(_grey(rgb))


def _grey(rgb: ByteArray) -> ByteArray:
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def _verdict(key: str, score: float, name: str, why: str) -> Verdict:
    """A score, and the filter that refuses it where `name` is not empty."""
    return Verdict({key: score}, name, f"{name}: {why}" if name else "")
