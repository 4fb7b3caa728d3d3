"""The model's weights of a step as `RUN/weights/step-…`: safetensors and config, for everything after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcjepa.data_prep.storage import Store
from mcjepa.model import pretrained
from mcjepa.pipeline.checkpoint.manifest import Checkpoint
from mcjepa.pipeline.checkpoint.state_file import DTYPES, fill_pieces, read_index
from mcjepa.pipeline.engine.state import BUFFER, WEIGHT, Piece
from mcjepa.pipeline.run.folder import WEIGHTS


def newest_weights(run: str | Path) -> Path | None:
    """The newest weights folder of a run in a folder, None where there is none."""
    folders = [f for f in sorted((Path(run) / WEIGHTS).glob("step-*")) if (f / pretrained.CONFIG_NAME).is_file()]
    return folders[-1] if folders else None


def read_parameters(store: Store, checkpoint: Checkpoint) -> dict[str, Any]:
    """Whole fp32 parameters and buffers of a checkpoint by name, whatever world and ZeRO stage wrote it.

    Raises:
        DataError: it is damaged.
    """
    import torch

    stored = read_index(store, checkpoint.key, sorted(checkpoint.files))
    kinds = {(s.name, s.kind): DTYPES[s.dtype] for s in stored if s.kind in (WEIGHT, BUFFER)}
    whole = {
        name: torch.empty(checkpoint.record["parameters"][name], dtype=dtype) for (name, _), dtype in kinds.items()
    }
    wanted = [Piece(name, kind, 0, whole[name].view(-1)) for name, kind in kinds]
    fill_pieces(store, checkpoint.key, stored, wanted)
    return whole
