"""Whole weights out of a checkpoint: DeepSpeed's files of one or many ranks put together, ZeRO stages 0 to 3.

Stage 0 keeps the whole model in one file; the others keep fp32 weights in slices beside the optimizer. Both are
pickles; `complete_checkpoints` has compared every file with the digests of the manifest before they are read.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipeline.checkpoint import Checkpoint
from pipeline.engine import merge_zero_shards
from pipeline.errors import RunError

ENGINE = "engine"


def consolidated_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The model's state dict at a checkpoint, on the CPU, floating tensors in fp32.

    Raises:
        RunError: the files do not hold a whole model.
    """
    try:
        sharded = checkpoint.zero_stage > 0
        state = merge_zero_shards(checkpoint.folder, ENGINE) if sharded else _whole(checkpoint.folder)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise RunError(
            f"checkpoint {checkpoint.folder} (ZeRO stage {checkpoint.zero_stage}, {checkpoint.world_size} ranks) could "
            f"not be put together: {error}; export another checkpoint, or the weights of its step"
        ) from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _whole(folder: Path) -> dict[str, Tensor]:
    file = next(iter(sorted((folder / ENGINE).glob("mp_rank_*_model_states.pt"))), None)
    if file is None:
        raise FileNotFoundError("it has no file mp_rank_…_model_states.pt")
    content = torch.load(file, map_location="cpu", weights_only=False)
    state: dict[str, Tensor] = content["module"]
    return state
