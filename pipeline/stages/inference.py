"""The infer stage: flow and features of the user's own clips, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.infer.clip import Clip
from mcjepa.evals.infer.run import ClipResult, infer_clip
from mcjepa.evals.models import McJepaEvalModel, choose_device, load_model, read_weights
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.stages.benchmarks import require_weights

if TYPE_CHECKING:
    from mcjepa.evals.infer.settings import InferConfig


@dataclass(frozen=True)
class Failure:
    """A clip without results."""

    clip: Clip
    reason: str


def load_weights(weights: str, device: str) -> tuple[McJepaEvalModel, str]:
    """The model of some weights (a folder or a shipped name) and what identifies it.

    Raises:
        UsageError: there is no such folder, it is incomplete, or there is no such device.
    """
    try:
        known = read_weights(require_weights(weights))
        return load_model(known.folder, choose_device(device)), known.identity
    except ValueError as error:
        raise UsageError(str(error)) from error
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename} is not there, expected a whole weights folder; export it again") from error


def infer_clips(
    model: McJepaEvalModel,
    identity: str,
    clips: list[Clip],
    config: InferConfig,
    out: Path,
    overwrite: bool,
    on_frame: Callable[[Clip, int, int], None],
) -> tuple[list[tuple[Clip, ClipResult]], list[Failure]]:
    """Writes the results of every clip; one that fails is among the failures and the others are done.

    Args:
        model: gives flow and features.
        identity: of the model.
        clips: what the user named.
        config: what is written.
        out: folder of the results.
        overwrite: whether existing results are written again.
        on_frame: told how many frames of a clip are done, of how many.
    """
    done: list[tuple[Clip, ClipResult]] = []
    failed: list[Failure] = []
    for clip in clips:

        def show(at: int, total: int, clip: Clip = clip) -> None:
            on_frame(clip, at, total)

        try:
            done.append((clip, infer_clip(model, identity, clip, config, out, overwrite, show)))
        except DataError as error:
            failed.append(Failure(clip, str(error)))
    return done, failed
