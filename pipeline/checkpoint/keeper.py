"""Saves a run's checkpoints by the recipe's rules, and says when that fails.

A save that fails on any rank (a full disk) fails on all: what it wrote is removed, the checkpoints before it stay, and
the run goes on. Too many in a row, or the failure of the last save of a run, end it with one error.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.checkpoint.manifest import MANIFEST, VERSION, Checkpoint, step_name
from mcjepa.pipeline.checkpoint.resume import check_continuation, restore
from mcjepa.pipeline.checkpoint.rotation import Rotation
from mcjepa.pipeline.checkpoint.state_file import state_name, write_state
from mcjepa.pipeline.checkpoint.upload import Upload, Uploader
from mcjepa.pipeline.checkpoint.weights import save_weights
from mcjepa.pipeline.engine.state import loss_scale_state, own_pieces, parameter_shapes, updates_done
from mcjepa.pipeline.errors import RunError
from mcjepa.pipeline.run.folder import CHECKPOINTS, WEIGHTS, RunFolder
from mcjepa.pipeline.settings.train import CheckpointConfig
from mcjepa.pipeline.world import World, broadcast_from_rank0, gather_all

log = logging.getLogger(__name__)
MOST_WAITING = 2
"""Uploads under way at which a further save is left out."""
FAILURES = (OSError, DataError, SafetensorError)


class CheckpointKeeper:
    """Saving and resuming of one run; every rank has one and all call its methods together.

    Args:
        config: the recipe's rules.
        world: this process among all.
        folder: where the run's files are.
        facts: what must not change when the run is continued, as plain data.
    """

    def __init__(self, config: CheckpointConfig, world: World, folder: RunFolder, facts: Mapping[str, Any]) -> None:
        self._config, self._world, self._folder, self._facts = config, world, folder, dict(facts)
        self._failed_in_a_row = 0
        self.last_step = 0
        """Step of the newest save, or the one resumed from."""
        self.last_digest = ""
        """What the newest save holds (`Checkpoint.digest`), on every rank."""
        self._rotation = Rotation(folder.store, config)
        self._uploader: Uploader | None = None
        if folder.remote:
            self._uploader = Uploader(
                folder.store,
                world.rank,
                world.size,
                before_commit=folder.copy if world.local_rank == 0 else lambda: None,
                after_commit=lambda step: log_removed(self._rotation.turn(step)),
            )

    def restore(self, start: Checkpoint, engine: Any) -> int:
        """Puts a checkpoint into the engine; returns the steps done.

        Raises:
            UsageError: it is of a run with other facts, or of another model.
            DataError: it cannot be read.
        """
        check_continuation(start, self._facts)
        restore(start, self._folder.store, engine, self._world)
        self._rotation.trust(start)
        self.last_step, self.last_digest = start.step, start.digest
        return start.step

    def due(self, step: int) -> bool:
        """Whether a save is due after so many steps."""
        return step % self._config.every_steps == 0

    def save(
        self,
        engine: Any,
        step: int,
        *,
        lineage: Mapping[str, Any],
        metrics: Mapping[str, float],
        final: bool = False,
        problem: str = "",
    ) -> bool:
        """Saves state and weights after `step` steps.

        Args:
            engine: the DeepSpeed engine.
            step: steps done.
            lineage: run id and dataset ids, kept with the weights.
            metrics: the newest record of the meters (rank 0's counts).
            final: whether the run ends after it: then it must not fail.
            problem: why it must not count: this rank's records of the steps before it are not on disk.

        Returns:
            Whether it was saved; otherwise the checkpoints before it count.

        Raises:
            RunError: it failed, and it was the last of the run or one too many in a row.
        """
        uploader = self._uploader
        if uploader and not final and max(gather_all(uploader.waiting, self._world)) >= MOST_WAITING:
            log.warning("no checkpoint at step %d: %d uploads are still under way", step, MOST_WAITING)
            return False
        problem = self._write(engine, step, lineage, metrics, problem)
        if not problem:
            self._failed_in_a_row = 0
            if uploader:
                self._check_uploads(uploader)
            return True
        self._failed_in_a_row += 1
        if self._world.rank == 0:
            log.error("the checkpoint of step %d was not saved and its files are removed: %s", step, problem)
        if final or self._failed_in_a_row >= self._config.max_failed_saves:
            raise RunError(
                f"the checkpoint of step {step} was not saved ({problem}); expected room for it; the one of step "
                f"{self.last_step} counts: free some space and rerun, it continues from there"
            )
        return False

    def close(self, within_s: float | None = None) -> None:
        """Ends the background upload and copies the run's last files; a second call does nothing.

        Args:
            within_s: how long to wait for what is under way; None: until it is done or has failed.

        Raises:
            RunError: the last checkpoint is not uploaded.
        """
        uploader, self._uploader = self._uploader, None
        if uploader:
            uploader.close(within_s)
        if self._world.local_rank == 0:
            self._folder.copy()

    def abandon(self) -> None:
        """`close` when something else has failed already: what goes wrong here is only logged."""
        try:
            self.close(self._config.grace_s)
        except (RunError, *FAILURES) as error:
            log.error("%s", error)

    def _check_uploads(self, uploader: Uploader) -> None:
        """Stops all ranks when one of them has failed to upload too often."""
        findings = gather_all((uploader.failed_in_a_row, uploader.last_failure), self._world)
        most, reason = max(findings)
        if most >= self._config.max_failed_saves:
            raise RunError(f"{most} uploads in a row failed: {reason}")

    def _write(
        self, engine: Any, step: int, lineage: Mapping[str, Any], metrics: Mapping[str, float], problem: str
    ) -> str:
        """Writes everything of a save; returns the problem of the first rank that had one, or nothing."""
        world, folder = self._world, self._folder.path / CHECKPOINTS / step_name(step)
        started = time.perf_counter()
        facts = self._prepare(folder, problem)
        name = state_name(world.rank, world.size)
        entry: dict[str, Any] = {}
        if not facts["problem"]:
            try:
                digest, size = write_state(folder / name, own_pieces(engine, world.rank, world.size))
                entry = {"sha256": digest, "bytes": size}
            except FAILURES as error:
                facts["problem"] = str(error)
        try:
            weights = save_weights(self._folder.path, engine, world, step, lineage)
        except FAILURES as error:
            weights, facts["problem"] = "", str(error)
        written = gather_all((name, entry, facts["problem"]), world)
        problem = next((each for _, _, each in written if each), "")
        manifest = {
            "version": VERSION,
            "step": step,
            "save": facts["save"],
            "world_size": world.size,
            "zero_stage": engine.zero_optimization_stage(),
            "facts": self._facts,
            "updates": updates_done(engine),
            "loss_scale": loss_scale_state(engine),
            "metrics": {k: float(v) for k, v in metrics.items()},
            "weights_sha256": weights,
            "parameters": parameter_shapes(engine),
            "files": {name: entry for name, entry, _ in written},
        }
        content = json.dumps(manifest, indent=1, sort_keys=True).encode()
        checkpoint = Checkpoint(self._folder.store.location, step, manifest)
        if not problem:
            self._rotation.trust(checkpoint)
        problem = problem or self._commit(folder, step, name, facts["save"], content)
        if problem:
            self._remove_partial(step)
            return problem
        self.last_step, self.last_digest = step, checkpoint.digest
        if world.rank == 0:
            log.info("checkpoint of step %d saved in %.2f s", step, time.perf_counter() - started)
        return ""

    def _prepare(self, folder: Path, problem: str) -> dict[str, str]:
        """Makes an empty folder for a save and agrees on its name; a problem of any machine is everyone's."""
        if self._makes_folders():
            try:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            except OSError as error:
                problem = str(error)
        told = gather_all(problem, self._world)
        save = broadcast_from_rank0(secrets.token_hex(8), self._world)
        return {"save": save, "problem": next((each for each in told if each), "")}

    def _commit(self, folder: Path, step: int, name: str, save: str, manifest: bytes) -> str:
        """Makes the save count: writes the manifest, or hands all files to the upload that does."""
        first = self._world.rank == 0
        if self._uploader:
            key = f"{CHECKPOINTS}/{step_name(step)}"
            self._uploader.submit(Upload(step, key, save, folder, (name,), manifest if first else b""))
            if self._makes_folders():
                self._folder.forget_weights(keep=MOST_WAITING + 1)
            return ""
        problem = ""
        if first:
            try:
                atomic_write(folder / MANIFEST, manifest)
            except FAILURES as error:
                problem = str(error)
        problem = broadcast_from_rank0(problem, self._world)
        if first and not problem:
            log_removed(self._rotation.turn(step))
        return problem

    def _remove_partial(self, step: int) -> None:
        gather_all(None, self._world)  # nobody writes any more
        if self._makes_folders():
            for parent in (CHECKPOINTS, WEIGHTS):
                shutil.rmtree(self._folder.path / parent / step_name(step), ignore_errors=True)

    def _makes_folders(self) -> bool:
        """Whether this rank looks after the local folder: one on each machine where it is scratch."""
        return self._world.local_rank == 0 if self._folder.remote else self._world.rank == 0


def log_removed(steps: list[int]) -> None:
    """Says which checkpoints were removed."""
    if steps:
        log.info("removed the checkpoints of steps %s", ", ".join(map(str, steps)))
