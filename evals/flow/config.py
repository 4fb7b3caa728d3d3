"""Settings of the optical flow evaluation.

Every field is written into the card of the score it shapes. Tags of origin: [C]/[S] the paper as two or one
account report it, [D] the named parent's default, "ours" where neither says anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from evals.checks import require

BASELINES = ("zero", "dis-ultrafast", "dis-fast", "dis-medium", "farneback")
"""Classical flow methods that need no weights."""


@dataclass(frozen=True, kw_only=True)
class FlowEvalConfig:
    """Which flow sets are scored, and against what."""

    sets: dict[str, str] = field(default_factory=dict)
    """Set name (see `data_prep.corpora.FLOW_SETS`) to the folder that its own archive unpacks to."""

    baselines: tuple[str, ...] = ("zero", "dis-medium")
    """Classical methods scored on the same pairs: zero, dis-ultrafast, dis-fast, dis-medium, farneback
    (ours)."""

    max_pairs: int = 0
    """Pairs scored of each set, evenly spaced over it; 0 = all of them (ours)."""

    pictures: int = 4
    """Evenly spaced pairs shown as pictures, and as many of the worst ones (ours)."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.baselines if name not in BASELINES]
        require(not unknown, f"flow.baselines has {unknown}", f"names of {list(BASELINES)}")
        require(self.max_pairs >= 0, f"flow.max_pairs is {self.max_pairs}", "0 (all) or more")
        require(self.pictures >= 0, f"flow.pictures is {self.pictures}", "0 or more")
