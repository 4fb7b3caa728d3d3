"""Which weights an export means: a weights folder, the newest of a run, or a checkpoint put together again.

    WEIGHTS                       any folder with model.safetensors and config.json
    RUN                           its newest complete checkpoint
    RUN/checkpoints/step-…        that checkpoint

The weights folder of the same step is taken for a checkpoint when its digest is the one that the checkpoint's manifest
names; otherwise the checkpoint's own pieces are put together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mcjepa.data_prep.storage import open_store
from mcjepa.model import pretrained
from mcjepa.model.config import ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.checkpoint import Checkpoint, complete_checkpoints, newest_weights, read_parameters, step_name
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.files import validate
from mcjepa.pipeline.run.first_weights import read_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exportable:
    """Weights with what is known of them."""

    state: Mapping[str, Tensor]
    config: ModelConfig
    lineage: Mapping[str, Any]
    source: str
    """`weights` or `checkpoint`: what was read."""
    place: Path


def find_weights(place: Path) -> Exportable:
    """Reads the weights that `place` means.

    Raises:
        UsageError: there are none, or they are damaged.
        DataError: a checkpoint that cannot be read.
    """
    if not place.is_dir():
        raise UsageError(f"no folder {place}, expected a run, one of its checkpoints, or a weights folder")
    if (place / pretrained.CONFIG_NAME).is_file():
        return _from_weights(place)
    run = place.parent.parent if place.parent.name == "checkpoints" else place
    found = [c for c in complete_checkpoints(run) if place == run or step_name(c.step) == place.name]
    if found:
        beside = run / "weights" / step_name(found[0].step)
        return _from_weights(beside) if _agree(beside, found[0]) else _from_checkpoint(found[0], run)
    newest = newest_weights(run) if place == run else None
    if newest is None:
        raise UsageError(
            f"{place} holds neither a complete checkpoint nor weights, expected a run, one of its checkpoints "
            "(RUN/checkpoints/step-…), or a weights folder; `mcjepa -v export` says what is wrong with a checkpoint"
        )
    return _from_weights(newest)


def _from_weights(folder: Path) -> Exportable:
    try:
        config, lineage = pretrained.read_config(folder)
        return Exportable(pretrained.read_state(folder), config, lineage, "weights", folder)
    except pretrained.WeightsError as error:
        raise UsageError(str(error)) from error


def _agree(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a weights folder is whole and holds the very weights that the checkpoint's manifest names."""
    try:
        pretrained.read_config(folder)
        found = pretrained.weights_digest(folder)
    except (pretrained.WeightsError, OSError) as error:
        log.info("the checkpoint itself is read: %s", error)
        return False
    expected = checkpoint.record["weights_sha256"]
    if found != expected:
        log.warning("%s has sha256 %s, %s names %s; the checkpoint is read", folder, found, checkpoint.name, expected)
    return bool(found == expected)


def _from_checkpoint(checkpoint: Checkpoint, run: Path) -> Exportable:
    state, config = read_parameters(open_store(str(run)), checkpoint), _model_config(run)
    model = MCJEPA(config)
    kept_only = {name for name, _ in model.named_buffers()} - set(model.state_dict())  # constants, not in weights
    state = {name: tensor for name, tensor in state.items() if name not in kept_only}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"checkpoint {checkpoint.name} does not fit {run / 'recipe.yaml'}: {error}") from error
    known = read_run(run)
    lineage = {"run_id": known.get("run_id", ""), "run": run.name, "step": checkpoint.step}
    lineage["dataset_ids"] = checkpoint.record["facts"]["dataset_ids"]
    if known.get("init_from"):
        lineage["init_from"] = known["init_from"]["sha256"]
    return Exportable(state, config, lineage, "checkpoint", run / checkpoint.key)


def _model_config(run: Path) -> ModelConfig:
    path = run / "recipe.yaml"
    if not path.is_file():
        raise UsageError(f"{run} has no recipe.yaml, expected the one that the run wrote; restore it")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return validate(ModelConfig, content["model"], f"{path}, model")
