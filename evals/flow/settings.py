"""Settings of the optical flow evaluation.

Every field is written into the card of the score it shapes. Tags of origin: [C]/[S] the paper as two or one
account report it, [D] the named parent's default, "ours" where neither says anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mcjepa.evals.progress import require

BASELINES = ("zero", "dis-ultrafast", "dis-fast", "dis-medium", "farneback")
"""Classical flow methods that need no weights."""

RESIZE_FORMS = re.compile(r"none|multiple-of-(?P<multiple>[1-9]\d*)|(?P<height>[1-9]\d*)x(?P<width>[1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class FlowEvalConfig:
    """Which flow sets are scored, and against what."""

    sets: dict[str, str] = field(default_factory=dict)
    """Set name (see `data_prep.corpora.FLOW_SETS`) to the folder that its own archive unpacks to, or to one that
    holds it, up to two levels above."""

    baselines: tuple[str, ...] = ("zero", "dis-medium")
    """Classical methods scored on the same pairs: zero, dis-ultrafast, dis-fast, dis-medium, farneback
    (ours)."""

    resize: str = "none"
    """How frames reach the model: `none` (as they are; ours pads inside), `multiple-of-64` (both sides up to the next
    multiple) or HEIGHTxWIDTH such as `448x1024` (UFlow's and SMURF's way). Resized bilinearly; the flow is resized
    back and its values scaled, and scored at full size. Baselines always see full frames (ours: none)."""

    subset: bool = False
    """The folders hold a part of their sets on purpose: what is there is the set. Else pairs that the whole set has
    and the folder has not make a score incomplete (ours)."""

    max_pairs: int = 0
    """Pairs scored of each set, evenly spaced over it; 0 = all of them (ours)."""

    pictures: int = 4
    """Evenly spaced pairs shown as pictures, and as many of the worst ones (ours)."""

    workers: int = 0
    """Threads that read and decode pairs ahead, run the baselines and measure; 0 = one per core (ours). Results do not
    depend on it."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.baselines if name not in BASELINES]
        require(not unknown, f"flow.baselines has {unknown}", f"names of {list(BASELINES)}")
        resize_form = f"flow.resize is {self.resize!r}"
        require(bool(RESIZE_FORMS.fullmatch(self.resize)), resize_form, "none, multiple-of-64 or HEIGHTxWIDTH")
        require(self.workers >= 0, f"flow.workers is {self.workers}", "0 (one per core) or more")
        require(self.max_pairs >= 0, f"flow.max_pairs is {self.max_pairs}", "0 (all) or more")
        require(self.pictures >= 0, f"flow.pictures is {self.pictures}", "0 or more")
