"""Settings of a study: arms that differ in a few keys of one recipe, trained from the same seeds, and what is measured.

Nothing heavy is imported: recipes hold these settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
"""Arms are folders too."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of the recipe and the values that they take in this arm, e.g. {train.terms.cycle.weight: 0}."""
    starts_from: str = ""
    """Arm whose last weights of the same seed this one starts from (`train.init_from`); empty: as the recipe says."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One column of a study's table, out of the scores of an evaluation."""

    of: tuple[str, ...]
    """Metrics `KIND/SET/METRIC` that are summed, such as flow/kitti2012/epe."""
    share_of: tuple[str, ...] = ()
    """Metrics whose sum it is divided by, such as flow/kitti2012/epe_zero; none: it stays as it is."""
    better: Literal["lower", "higher"]
    """Which values are better."""
    scale: float = 1.0
    """Factor on it: 100 for percents of a share."""
    digits: int = 1
    """Decimals in the table."""

    def __post_init__(self) -> None:
        short = [name for name in (*self.of, *self.share_of) if name.count("/") != 2]
        if not self.of or short:
            raise ValueError(f"metrics {short or 'missing'}, expected KIND/SET/METRIC, e.g. flow/kitti2012/epe")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The arms, seeds and columns of a study."""

    arms: dict[str, Arm] = field(default_factory=dict)
    """Name -> arm, in the order of the table's rows; all have the recipe's settings but for their overrides."""
    reference: str = ""
    """Arm that all others are compared with; empty: the first one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every arm is trained and evaluated once with each: `train.seed` and `eval.seed`."""
    measures: dict[str, Measure] = field(default_factory=dict)
    """Column -> how it is made of an evaluation's scores."""
    meters: tuple[str, ...] = ()
    """Meters of the training that are shown over time, such as gradient_cosine."""

    def __post_init__(self) -> None:
        wrong = [name for name in self.arms if not NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"arm {wrong[0]!r}, expected small letters, digits and dashes")
        if self.reference and self.reference not in self.arms:
            raise ValueError(f"reference is {self.reference!r}, expected one of the arms {', '.join(self.arms)}")
        for name, arm in self.arms.items():
            if arm.starts_from and list(self.arms).index(name) <= self._place(arm.starts_from):
                raise ValueError(
                    f"arm {name} starts from {arm.starts_from!r}, expected an arm that stands before it; "
                    f"the arms are {', '.join(self.arms)}"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds are {self.seeds}, expected different numbers of 0 or more")

    def _place(self, arm: str) -> int:
        return list(self.arms).index(arm) if arm in self.arms else len(self.arms)

    @property
    def compared_with(self) -> str:
        """The reference arm's name."""
        return self.reference or next(iter(self.arms), "")
