"""Checkpoints of a run folder.

    RUN/checkpoints/step-000001200/engine/…          DeepSpeed's own files (model, optimizer)
    RUN/checkpoints/step-000001200/rng-00000.pt      random state of every rank
    RUN/checkpoints/step-000001200/manifest.json     written last: digests of all files; complete only with it
    RUN/weights/step-000001200/                      safetensors and config of the same step

A checkpoint whose manifest is absent or whose files differ from it does not count: the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.storage import atomic_write
from model import pretrained
from pipeline.engine import World
from pipeline.errors import UsageError

log = logging.getLogger(__name__)
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    step: int
    world_size: int
    zero_stage: int
    dataset_ids: tuple[str, ...]


def step_name(step: int) -> str:
    """Folder name of a step: steps sort as text."""
    return f"step-{step:09d}"


def save_checkpoint(run: Path, engine: Any, world: World, step: int, facts: Mapping[str, Any]) -> Path:
    """Saves after `step` steps; all ranks call it.

    Args:
        run: the run folder.
        engine: the DeepSpeed engine.
        world: this process among all.
        step: steps done, which is also the cursor of the streams.
        facts: dataset ids and the ZeRO stage, for the manifest.

    Returns:
        The checkpoint's folder.
    """
    folder = run / "checkpoints" / step_name(step)
    if world.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    _barrier(world)
    engine.save_checkpoint(str(folder), tag="engine", client_state={"mcjepa": {"step": step}})
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    torch.save(state, folder / f"rng-{world.rank:05d}.pt")
    _barrier(world)
    if world.rank == 0:
        files = {str(p.relative_to(folder)): _digest(p) for p in _files(folder)}
        record = {"version": VERSION, "step": step, "world_size": world.size, **facts, "files": files}
        atomic_write(folder / "manifest.json", json.dumps(record, indent=1, sort_keys=True).encode())
    _barrier(world)
    return folder


def complete_checkpoints(run: Path) -> list[Checkpoint]:
    """Checkpoints with a manifest whose files are all there with the right digests, newest first."""
    found = []
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            found.append(_read(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s does not count: %s", folder, error)
    return found


def _read(folder: Path) -> Checkpoint:
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError("it has no manifest.json, so its writing was interrupted")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["version"] != VERSION:
        raise ValueError(f"its version is {record['version']}, expected {VERSION}")
    for name, digest in record["files"].items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise ValueError(f"its file {name} is absent or differs from the manifest")
    ids = tuple(record["dataset_ids"])
    return Checkpoint(folder, int(record["step"]), int(record["world_size"]), int(record["zero_stage"]), ids)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run folder, None where there is none."""
    return next(iter(complete_checkpoints(run)), None)


def load_checkpoint(checkpoint: Checkpoint, engine: Any, world: World, facts: Mapping[str, Any]) -> int:
    """Restores model, optimizer and random state; all ranks call it.

    Returns:
        Steps done.

    Raises:
        UsageError: the run it belongs to had other datasets, another world size or another ZeRO stage.
    """
    for name in ("dataset_ids", "zero_stage"):
        before, now = getattr(checkpoint, name), facts[name]
        if before != (tuple(now) if isinstance(now, list) else now):
            raise UsageError(
                f"resume refused: {name} is {now}, expected {before} as in {checkpoint.folder}; "
                "restore it, or choose another folder with train.run=DIR"
            )
    if checkpoint.world_size != world.size:
        raise UsageError(
            f"resume refused: {world.size} ranks, expected {checkpoint.world_size} as in {checkpoint.folder}; "
            "start as many ranks (resuming on another number comes with a later release)"
        )
    engine.load_checkpoint(str(checkpoint.folder), tag="engine")
    state = torch.load(checkpoint.folder / f"rng-{world.rank:05d}.pt", weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and world.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], world.device)
    return checkpoint.step


def save_weights(run: Path, engine: Any, world: World, step: int, lineage: Mapping[str, Any]) -> Path:
    """Writes `RUN/weights/step-…`; all ranks call it (ZeRO-3 gathers its shards)."""
    folder = run / "weights" / step_name(step)
    module = engine.module
    with _gathered(engine):
        if world.rank == 0:
            digest = pretrained.save(module.state_dict(), module.config, folder, {**lineage, "step": step})
            log.info("weights of step %d: %s (sha256 %s)", step, folder, digest[:12])
    _barrier(world)
    return folder


def _gathered(engine: Any) -> Any:
    import deepspeed

    parameters = list(engine.module.parameters()) if engine.zero_optimization_stage() == 3 else []
    return deepspeed.zero.GatheredParameters(parameters, enabled=bool(parameters))


def remove_old(run: Path, keep: int) -> None:
    """Removes all but the newest `keep` complete checkpoints, with the weights beside them."""
    for checkpoint in complete_checkpoints(run)[keep:]:
        (checkpoint.folder / "manifest.json").unlink()
        shutil.rmtree(checkpoint.folder)
        shutil.rmtree(run / "weights" / checkpoint.folder.name, ignore_errors=True)


def newest_weights(run: Path) -> Path | None:
    """The newest weights folder of a run, None where there is none."""
    folders = [f for f in sorted((run / "weights").glob("step-*")) if (f / pretrained.CONFIG_NAME).is_file()]
    return folders[-1] if folders else None


def _files(folder: Path) -> Iterator[Path]:
    yield from (p for p in sorted(folder.rglob("*")) if p.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _barrier(world: World) -> None:
    if world.size > 1:
        torch.distributed.barrier()
