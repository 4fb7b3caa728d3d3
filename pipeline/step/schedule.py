"""What changes with the step: learning rates, weights of the loss terms, which branch has begun. Pure functions.

An epoch is one of the views' stream (of the pairs' where there are no views). Nothing here has a state, so resuming
needs none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mcjepa.pipeline.settings.train import MASKS, MOTION_TERMS, TermConfig, TrainConfig


def rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then half a cosine to 0.

    Args:
        step: 0-based step about to be taken.
        steps: steps of the whole run.
        warmup_steps: length of the warm-up, cut to the run's length.

    Returns:
        Factor on the peak rate, in (0, 1].

    >>> [round(rate_factor(s, 10, 2), 3) for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.038]
    """
    warmup = min(warmup_steps, steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def term_factor(step: int, start_step: int, warmup_steps: int) -> float:
    """Factor on a term's weight: 0 before its start, then rising linearly to 1 over its warm-up.

    >>> [term_factor(s, 2, 4) for s in range(7)]
    [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if step < start_step:
        return 0.0
    return min((step - start_step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0


@dataclass(frozen=True)
class Schedule:
    """A recipe's schedule in steps."""

    steps: int
    """Steps of the whole run."""
    warmup_steps: int
    """Of the learning rate."""
    term_starts: Mapping[str, int]
    """First step of every loss term."""
    term_warmups: Mapping[str, int]
    """Steps over which its weight rises."""
    weights: Mapping[str, float]
    """Full weight of every loss term, the video balance multiplied in, and of the masks."""
    frozen: tuple[str, ...] = ()
    """Parameter groups that no step trains."""

    def rate_factor(self, step: int) -> float:
        """Factor on every group's peak learning rate in a step."""
        return rate_factor(step, self.steps, self.warmup_steps)

    def never_begun(self, *, pairs: bool, views: bool) -> tuple[str, ...]:
        """Terms with a weight that start behind the last step.

        Args:
            pairs: whether the run has pairs, which the motion terms need.
            views: whether it has views, which the content term needs.
        """
        there = {**dict.fromkeys((*MOTION_TERMS, MASKS), pairs), "content": views}
        late = (name for name, start in self.term_starts.items() if self.weights[name] and start >= self.steps)
        return tuple(name for name in late if there[name])

    def weights_at(self, step: int) -> dict[str, float]:
        """Weight of every loss term, and of the masks, in a step; 0 before its start."""
        return {
            name: weight * term_factor(step, self.term_starts[name], self.term_warmups[name])
            for name, weight in self.weights.items()
        }

    def idle_groups(self, step: int) -> tuple[str, ...]:
        """Parameter groups that no loss term has reached yet (`estimator`, `expander`), and those that are frozen.

        They are held still. Otherwise AdamW would count the steps without gradients, and its bias correction would be
        gone when the branch starts: a first update of three times the rate.
        """
        weights = self.weights_at(step)
        motion = any(weights[name] for name in MOTION_TERMS)
        return (*(() if motion else ("estimator",)), *(() if weights["content"] else ("expander",)), *self.frozen)


def late_terms(schedule: Schedule, config: TrainConfig) -> str:
    """Says which weighted terms a run ends before, in words; empty where every one begins."""
    late = schedule.never_begun(pairs=config.stream.pair_batch > 0, views=config.stream.view_batch > 0)
    if not late:
        return ""
    starts = "; ".join(f"{name} at step {schedule.term_starts[name]}" for name in late)
    flow = ", so flow is not trained at all" if set(MOTION_TERMS) <= {*late, *_unweighted(schedule)} else ""
    return f"the run ends after {schedule.steps} steps, and these terms have a weight but begin later: {starts}{flow}"


def _unweighted(schedule: Schedule) -> set[str]:
    return {name for name, weight in schedule.weights.items() if not weight}


def build_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """Brings a recipe's epochs to steps.

    Args:
        config: the run's settings.
        steps_per_epoch: whole steps of an epoch.
    """

    def steps_of(epochs: float) -> int:
        return round(epochs * steps_per_epoch)

    def start_of(term: TermConfig) -> int:
        return max(term.start_step, steps_of(term.start_epoch))

    warmup = config.optimizer.warmup_epochs
    terms = config.terms
    return Schedule(
        steps=config.steps or max(steps_of(config.epochs), 1),
        warmup_steps=config.optimizer.warmup_steps if warmup is None else steps_of(warmup),
        term_starts={name: start_of(term) for name, term in terms.items()},
        term_warmups={name: steps_of(term.warmup_epochs) for name, term in terms.items()},
        weights={
            name: term.weight * (terms.video_balance if name in MOTION_TERMS else 1.0) for name, term in terms.items()
        },
        frozen=("encoder",) if config.frozen_encoder else (),
    )
