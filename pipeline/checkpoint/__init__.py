"""Checkpoints of a run: saved by all ranks, complete or not at all, resumed by any number of ranks in any ZeRO stage.

    RUN/checkpoints/step-000001200/state-00000-of-00002.safetensors   a rank's pieces of weights and moments, fp32
    RUN/checkpoints/step-000001200/manifest.json                      written last: step, facts, digests of all files
    RUN/weights/step-000001200/                                       safetensors and config of the same step

The schedule, the streams' cursors and the random numbers are pure functions of the step, which is therefore all that
the manifest holds of them. A checkpoint whose manifest is absent or whose files differ from it does not count: the one
before is used.
"""

from mcjepa.pipeline.checkpoint.keeper import CheckpointKeeper
from mcjepa.pipeline.checkpoint.manifest import Checkpoint, complete_checkpoints, newest_checkpoint, step_name
from mcjepa.pipeline.checkpoint.weights import newest_weights, read_parameters

__all__ = [
    "Checkpoint",
    "CheckpointKeeper",
    "complete_checkpoints",
    "newest_checkpoint",
    "newest_weights",
    "read_parameters",
    "step_name",
]
