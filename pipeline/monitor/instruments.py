"""Everything that watches the loop, behind four calls: begin a step, end it, record a window, close.

tap = instruments.begin(batch, weights)          what looks into this step, if anything does
result = run_step(..., tap=tap)
instruments.end(batch, result, setting, waited_s)
values = instruments.record(setting)             every `log_every` steps, on all ranks; the values on rank 0
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcjepa.pipeline.monitor.guards import StepGuard, StepSetting
from mcjepa.pipeline.monitor.meters import MachineMeters, Meters
from mcjepa.pipeline.monitor.representation import Alerts, PeriodicMeters
from mcjepa.pipeline.monitor.throughput import FlopCounter, ProfileWindow, device_name, peak_tflops
from mcjepa.pipeline.run.folder import BAD_STEPS
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.step.clock import StepClock
from mcjepa.pipeline.step.step import StepResult
from mcjepa.pipeline.stream.batches import StepBatch
from mcjepa.pipeline.world import World

log = logging.getLogger(__name__)


class Instruments:
    """Guard, meters, alerts and profiler of one rank; all ranks make one.

    Args:
        config: the run's settings.
        world: this process among all.
        engine: the DeepSpeed engine.
        folder: the run folder.
    """

    def __init__(self, config: TrainConfig, world: World, engine: Any, folder: Path) -> None:
        self._config, self._world, self._engine = config, world, engine
        self.clock = StepClock()
        self.guard = StepGuard(folder / BAD_STEPS, world.rank, config.max_bad_steps, config.guards)
        self._meters, self._alerts = Meters(), Alerts(config.meters.alerts)
        folder.mkdir(parents=True, exist_ok=True)
        self._machine = MachineMeters(world, folder)
        self._profile = ProfileWindow(config.profile, folder, world.rank, world.device)
        self._flops: dict[Hashable, int] = {}
        self._window_flops: list[int | None] = []
        self._corrupt = 0
        self._peak_tflops = peak_tflops(device_name(world.device), config.engine.precision, config.meters.peak_tflops)
        self._tap: PeriodicMeters | FlopCounter | None = None

    def waits_for_data(self, step: int) -> None:
        """Called before the step's batch is asked for."""
        self._profile.begin(step)
        self.clock.enter("data", step)

    def begin(self, batch: StepBatch, weights: Mapping[str, float]) -> PeriodicMeters | FlopCounter | None:
        """What looks into this step: the periodic meters every so often, or a counter of operations.

        That one is for kinds of steps that were not counted yet. The meters have collectives, and ranks without pairs
        see other kinds of steps: only the very first is everywhere the counter's, whatever is due.
        """
        every = self._config.meters.every
        self._tap = None
        if self._flops and every and (batch.step + 1) % every == 0:
            self._tap = PeriodicMeters(self._engine, self._config.meters)
        elif _kind(batch, weights) not in self._flops:
            self._tap = FlopCounter()
        return self._tap

    def end(self, batch: StepBatch, result: StepResult, setting: StepSetting, waited_s: float) -> None:
        """Takes in a step.

        Raises:
            RunError: a guard ends the run.
        """
        self.clock.enter("meters")
        self.guard.check(batch, result, setting)
        if result.finite:
            self._meters.add(result.meters)
            if isinstance(self._tap, PeriodicMeters):
                self._meters.add(self._tap.values)
            elif isinstance(self._tap, FlopCounter):
                parts = self._engine.gradient_accumulation_steps()  # the counter saw one of them
                self._flops[_kind(batch, setting.weights)] = parts * self._tap.total
        self._window_flops.append(self._flops.get(_kind(batch, setting.weights)))
        self._corrupt += len(batch.corrupt)
        stream = self._config.stream
        counts = {"pairs": (batch.pairs, stream.pair_batch), "images": (batch.views, stream.view_batch)}
        self._meters.step_done(waited_s, {name: count if part else 0 for name, (part, count) in counts.items()})

    def record(self, setting: StepSetting) -> dict[str, float]:
        """Means of the window since the last record; all ranks call it, rank 0 gets the values."""
        self.clock.enter("record")
        values = self._meters.record(self.clock.window())
        values.update(self._machine.gather(values["data_wait_share"], self._corrupt))
        flops, self._window_flops = self._window_flops, []
        if self._world.rank != 0:
            return {}
        values.update({f"lr_{name}": rate for name, rate in setting.rates.items()})
        values.update({f"weight_{name}": weight for name, weight in setting.weights.items()})
        values.update(self._speed(flops, values["seconds_per_step"]))
        values["bad_steps"], values["spikes"] = float(self.guard.total), float(self.guard.spikes)
        if self.guard.scale_skips:
            values["scale_skips"] = float(self.guard.scale_skips)
        for line in self._alerts.look(values):
            log.warning("%s", line)
        values["alerts"] = float(len(self._alerts.standing))
        return values

    def _speed(self, flops: Sequence[int | None], seconds_per_step: float) -> dict[str, float]:
        """By the operations of a window's steps; nothing where those of some step are not known."""
        known = [each for each in flops if each]
        if not known or len(known) < len(flops):
            return {}
        reached = sum(known) / len(known) / seconds_per_step / 1e9
        values = {"gflops_per_s": reached}
        if self._peak_tflops:
            values["mfu"] = reached / 1e3 / self._peak_tflops
        return values

    def close(self) -> None:
        """Ends an open profile, and writes the records that wait for room."""
        self._profile.end()
        self.guard.close()


def _kind(batch: StepBatch, weights: Mapping[str, float]) -> Hashable:
    """What the operations of a step hang on: its streams and the terms that are computed."""
    return batch.pairs is not None, batch.views is not None, frozenset(name for name, each in weights.items() if each)
