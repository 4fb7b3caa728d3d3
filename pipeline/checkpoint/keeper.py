"""Saves a run's checkpoints by the recipe's rules, and says when that fails.

A save that fails on any rank (a full disk) fails on all: what it wrote is removed, the checkpoints before it stay, and
the run goes on. Too many in a row, or the failure of the last save of a run, end it with one error.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.checkpoint.background import BackgroundSaver
from mcjepa.pipeline.checkpoint.manifest import MANIFEST, VERSION, Checkpoint, step_name
from mcjepa.pipeline.checkpoint.part import Part, Snapshot, whole_weights
from mcjepa.pipeline.checkpoint.resume import check_continuation, restore
from mcjepa.pipeline.checkpoint.rotation import Rotation
from mcjepa.pipeline.checkpoint.state_file import state_name
from mcjepa.pipeline.engine.state import loss_scale_state, own_pieces, parameter_shapes, updates_done
from mcjepa.pipeline.errors import RunError
from mcjepa.pipeline.run.folder import CHECKPOINTS, WEIGHTS, RunFolder
from mcjepa.pipeline.settings.train import CheckpointConfig
from mcjepa.pipeline.world import World, broadcast_from_rank0, gather_all

log = logging.getLogger(__name__)
MOST_WAITING = 2
"""Uploads under way at which a further save is left out; of copies in memory there is one."""
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
        self._last_step = 0
        self._rotation = Rotation(folder.store, config)
        self._snapshot = Snapshot()
        self._saver = BackgroundSaver(
            folder.store,
            folder.remote,
            world.rank,
            world.size,
            before_commit=folder.copy if world.local_rank == 0 else lambda: None,
            on_commit=self._rotation.trust,
            after_commit=lambda step: log_removed(self._rotation.turn(step)),
        )
        self._closed = False

    def restore(self, start: Checkpoint, engine: Any) -> int:
        """Puts a checkpoint into the engine; returns the steps done.

        Raises:
            UsageError: it is of a run with other facts, or of another model.
            DataError: it cannot be read.
        """
        check_continuation(start, self._facts)
        restore(start, self._folder.store, engine, self._world)
        self._rotation.trust(start)
        self._last_step = start.step
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
            Whether it was saved, or is being saved in the background; otherwise the checkpoints before it count.

        Raises:
            RunError: it failed, and it was the last of the run or one too many in a row.
        """
        waiting = self._look_at_background(final)
        most = 1 if self._config.background else MOST_WAITING
        if waiting >= most and not final:
            log.warning("no checkpoint at step %d: %d before it are still being saved", step, waiting)
            return False
        problem = self._write(engine, step, lineage, metrics, problem, background=self._config.background and not final)
        if not problem:
            self._failed_in_a_row = 0
            return True
        self._failed_in_a_row += 1
        if self._world.rank == 0:
            log.error("the checkpoint of step %d was not saved and its files are removed: %s", step, problem)
        if final or self._failed_in_a_row >= self._config.max_failed_saves:
            raise RunError(
                f"the checkpoint of step {step} was not saved ({problem}); expected room for it; the one of step "
                f"{self._last_step} counts: free some space and rerun, it continues from there"
            )
        return False

    @property
    def busy(self) -> bool:
        """Whether a save of this rank is under way in the background."""
        return self._saver.waiting > 0

    def committed(self) -> list[Checkpoint]:
        """On rank 0: the checkpoints that have become complete since the last call, oldest first."""
        found = self._saver.committed
        return [found.popleft() for _ in range(len(found))]

    def close(self, time_left_s: Callable[[], float | None] = lambda: None) -> None:
        """Ends the background upload and copies the run's last files; a second call does nothing.

        Args:
            time_left_s: how long still to wait for what is under way; None: until it is done or has failed.

        Raises:
            RunError: the last checkpoint is not uploaded.
        """
        if self._closed:
            return
        self._closed = True
        self._saver.close(time_left_s)
        if self._world.local_rank == 0:
            self._folder.copy()

    def abandon(self) -> None:
        """`close` when something else has failed already: what goes wrong here is only logged."""
        try:
            ends = time.monotonic() + self._config.grace_s
            self.close(lambda: max(ends - time.monotonic(), 0.0))
        except (RunError, *FAILURES) as error:
            if str(error) != self._saver.last_failure:  # that has been said
                log.error("%s", error)

    def _look_at_background(self, final: bool) -> int:
        """How many saves some rank has under way; ends all ranks when one of them has failed too often.

        The last save of a run in a folder is not made in the background: it waits for those that are.
        """
        saver, drain = self._saver, final and not self._folder.remote
        if drain and self._world.rank:  # rank 0 alone waits for others, and may have to be told of their failures
            saver.wait()
        mine = (saver.waiting, saver.failed_in_a_row, saver.last_failure, saver.failed_save, saver.last_step)
        waiting, failures, reasons, failed, steps = zip(*gather_all(mine, self._world), strict=True)
        self._last_step = max(self._last_step, *steps)
        saver.give_up(set(failed))
        if drain and self._world.rank == 0:
            saver.wait()
        most, reason = max(zip(failures, reasons, strict=True))
        if most >= self._config.max_failed_saves and not final:
            raise RunError(f"{most} saves in a row failed: {reason}")
        return max(waiting)

    def _write(
        self,
        engine: Any,
        step: int,
        lineage: Mapping[str, Any],
        metrics: Mapping[str, float],
        problem: str,
        *,
        background: bool,
    ) -> str:
        """Writes everything of a save, or has it written; the problem of the first rank that had one, or nothing."""
        world, run = self._world, self._folder.path
        started = time.perf_counter()
        save, problem = self._prepare(run / CHECKPOINTS / step_name(step), problem)
        manifest = self._manifest(engine, step, save, metrics)
        with whole_weights(engine, world) as weights:
            part = Part(
                run, step, save, state_name(world.rank, world.size), own_pieces(engine, world.rank, world.size),
                weights, engine.module.config, {**lineage, "step": step}, manifest,
            )  # fmt: skip
            if background and not problem:
                self._saver.submit(self._snapshot.copy(part))
            elif not problem:
                try:
                    part.write()
                except FAILURES as error:
                    problem = str(error)
        if not background:
            problem = self._complete(part, problem)
        if problem:
            self._remove_partial(step)
        elif world.rank == 0:
            what = "copied, and is being saved" if background else "saved"
            log.info("checkpoint of step %d %s in %.2f s", step, what, time.perf_counter() - started)
        if self._folder.remote and self._makes_folders() and not problem:
            self._folder.forget_weights(keep=MOST_WAITING + 1)
        return problem

    def _manifest(self, engine: Any, step: int, save: str, metrics: Mapping[str, float]) -> dict[str, Any]:
        """All of it but the files and the weights' digest."""
        return {
            "version": VERSION,
            "step": step,
            "save": save,
            "world_size": self._world.size,
            "zero_stage": engine.zero_optimization_stage(),
            "facts": self._facts,
            "updates": updates_done(engine),
            "loss_scale": loss_scale_state(engine),
            "metrics": {k: float(v) for k, v in metrics.items()},
            "weights_sha256": "",
            "parameters": parameter_shapes(engine),
        }

    def _complete(self, part: Part, problem: str) -> str:
        """Makes a save count whose files are written: by its manifest, or by the upload that writes it."""
        world = self._world
        written = gather_all((part.name, part.entry, problem), world)
        problem = next((each for _, _, each in written if each), "")
        if self._folder.remote and not problem:
            self._saver.submit(part)
            return ""
        if world.rank == 0 and not problem:
            files = {name: entry for name, entry, _ in written}
            checkpoint = Checkpoint(self._folder.store.location, part.step, {**part.manifest, "files": files})
            self._rotation.trust(checkpoint)
            try:
                atomic_write(self._folder.path / part.key / MANIFEST, checkpoint.content)
            except FAILURES as error:
                problem = str(error)
        problem = broadcast_from_rank0(problem, world)
        if not problem:
            self._last_step = part.step
            self._saver.forget_failures()
            if world.rank == 0:
                self._saver.committed.append(checkpoint)
                self._saver.remove_old(part.step)
        return problem

    def _prepare(self, folder: Path, problem: str) -> tuple[str, str]:
        """Makes an empty folder for a save; its random name, and a problem of any machine, which is everyone's."""
        if self._makes_folders():
            try:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            except OSError as error:
                problem = str(error)
        told = gather_all((secrets.token_hex(8), problem), self._world)
        return told[0][0], next((each for _, each in told if each), "")

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
