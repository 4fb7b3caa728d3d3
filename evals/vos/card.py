"""The card of a score of video objects: protocol, counts, and what was not scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcjepa.evals.cards import Card, package_versions
from mcjepa.evals.subject import Subject
from mcjepa.evals.vos.sequence import SequenceScorer
from mcjepa.evals.vos.settings import VosConfig

OFFICIAL_SEQUENCES = {"davis": 30, "davis2017": 30, "davis2016": 20, "davis2017-test-dev": 30}
"""Sequences of the official lists."""


@dataclass
class SetFacts:
    """Counts over the sequences that went well."""

    sequences: int = 0
    """Sequences, those without ground truth too."""
    objects: int = 0
    """Objects of their first frames."""
    frames: int = 0
    """Scored frames."""
    unscored: int = 0
    """Sequences without ground truth."""
    sizes: set[str] = field(default_factory=set)
    """Sizes of masks, as WxH."""
    later: list[str] = field(default_factory=list)
    """Objects that appear after the first frame, as "SEQUENCE ID, ID"."""

    def add(self, name: str, scorer: SequenceScorer, size: tuple[int, ...], scored: bool) -> None:
        """Counts one sequence."""
        self.sequences += 1
        self.objects += len(scorer.objects)
        self.frames += scorer.frames
        self.unscored += not scored
        self.sizes.add(f"{size[1]}x{size[0]}")
        if scorer.later:
            self.later.append(f"{name} {', '.join(map(str, sorted(scorer.later)))}")


def vos_card(source: Subject | Path, root: str, config: VosConfig, facts: SetFacts, failed: Sequence[str]) -> Card:
    """The card; `source` is the model, or the folder of the masks that were scored."""
    by_model = isinstance(source, Subject)
    later = f"; not scored, as they appear after the first frame: {'; '.join(facts.later)}" if facts.later else ""
    return Card(
        data_set=config.set,
        split=_split(config.set, facts, len(failed)),
        root=root,
        frames=facts.frames,
        unit="frames, first and last of each sequence left out",
        failed=tuple(failed),
        resolution=f"{', '.join(sorted(facts.sizes))} px; {_encoded(config) if by_model else ''}"
        "scored at the masks' size",
        masks=f"every pixel; objects of the first frame{later}",
        head=_head(config) if by_model else "none: masks were read from files",
        aggregation="official J and F; mean over frames, then over all objects of all sequences",
        config=dataclasses.asdict(config) | {"protocol": config.protocol if by_model else "estimates"},
        weights_digest=source.digest if isinstance(source, Subject) else "",
        model=source.name if isinstance(source, Subject) else f"estimates in {source}",
        lineage=source.lineage if isinstance(source, Subject) else {},
        versions=package_versions("torch", "numpy", "opencv-python-headless"),
    )


def _split(name: str, facts: SetFacts, failed: int) -> str:
    official = OFFICIAL_SEQUENCES.get(name, 0)
    parts = [f"{facts.sequences} sequences, {facts.objects} objects"]
    if failed:
        parts.append(f"{failed} sequences failed and are in no mean")
    if facts.unscored:
        parts.append(f"{facts.unscored} sequences without ground truth: masks written, not scored")
    if facts.sequences < official:
        parts.append(f"the official list has {official} sequences: not comparable with published numbers")
    return "; ".join(parts)


def _encoded(config: VosConfig) -> str:
    if not config.short_side:
        return "encoded as is; "
    rounding = f", long side down to a multiple of {config.side_multiple_px}" if config.side_multiple_px > 1 else ""
    return f"encoded short side {config.short_side} px{rounding}; "


def _head(config: VosConfig) -> str:
    where = f"{config.neighbourhood} of radius {config.radius_cells} cells" if config.radius_cells else "no radius"
    first = "" if config.limit_first or not config.radius_cells else " (not on the first frame)"
    kind = "l2-normalised features" if config.normalize else "features as they are"
    return (
        f"none: label propagation ({config.protocol}), first + last {config.context_frames} frames, "
        f"top-{config.top_k}, {where}{first}, temperature {config.temperature:g}, {kind} at stride {config.stride}"
    )
