"""One of several ranks, of which one gets stuck in the way it is told; for the tests of the watchdog."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import torch

from mcjepa.pipeline.engine.engine import start_world
from mcjepa.pipeline.monitor.watchdog import Watchdog
from mcjepa.pipeline.settings.monitor import GuardConfig
from mcjepa.pipeline.settings.train import EngineConfig
from mcjepa.pipeline.step.clock import CLOSING, StepClock


def main(run: str, how: str, exit_s: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    world, clock = start_world(EngineConfig(threads=1)), StepClock()
    config = GuardConfig(watchdog_s=1.0, watchdog_exit_s=float(exit_s))
    with Watchdog(config, clock, Path(run), world.rank, world.size):
        for step in range(4):
            clock.enter("data", step)
            if how == "starve" and step == 2 and world.rank == 1:
                time.sleep(600)
            if how == "pause" and step == 2:
                time.sleep(2.5)
            clock.enter("forward")
            torch.distributed.all_reduce(torch.ones(1))
            clock.enter("update")
            if how == "close" and step == 3:
                clock.enter(CLOSING)
                time.sleep(4.0)
            if how == "lock" and step == 1 and world.rank == 1:
                3 ** (2 * 10**8)  # one call of C that keeps the lock of Python for long


if __name__ == "__main__":
    main(*sys.argv[1:])
