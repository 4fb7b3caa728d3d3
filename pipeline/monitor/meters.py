"""Meters of a run: means over a window of steps, memory of every rank and load of every node.

Ranks and nodes are gathered at a record, without a thread or a connection of their own. Every rank gives one row of
numbers; rank 0 makes records of them. A node's row is that of its local rank 0. Names follow MLflow's system metrics,
so that its interface shows them on their own page, as `system/HOST/cpu_utilization_percentage`.
"""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from torch import Tensor

from mcjepa.pipeline.world import World


class Meters:
    """Collects values of every step and averages them at a record.

    Tensors stay on their device until the record is made, so collecting does not wait for an accelerator.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._started = time.perf_counter()
        self._waited_s = 0.0
        self._steps = 0
        self._samples: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Adds one step's values to the window."""
        for name, value in values.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def step_done(self, waited_s: float, samples: Mapping[str, int] | None = None) -> None:
        """Counts a step, the seconds it waited for data, and the samples of all ranks in it by their kind."""
        self._steps += 1
        self._waited_s += waited_s
        for kind, count in (samples or {}).items():
            self._samples[kind] = self._samples.get(kind, 0) + count

    def record(self, parts_s: Mapping[str, float] | None = None) -> dict[str, float]:
        """Means of the window; starts a new one.

        Args:
            parts_s: seconds of the window by part of the step (`StepClock.window`).

        Returns:
            Mean of every value, `seconds_per_step`, `data_wait_share`, `KIND_per_s` of every kind of samples, and
            `seconds_PART` a step of every part.
        """
        now = time.perf_counter()
        spent = max(now - self._started, 1e-9)
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        means["seconds_per_step"] = spent / max(self._steps, 1)
        means["data_wait_share"] = self._waited_s / spent
        means.update({f"{kind}_per_s": count / spent for kind, count in self._samples.items()})
        means.update({f"seconds_{part}": s / max(self._steps, 1) for part, s in (parts_s or {}).items()})
        self.__init__()  # type: ignore[misc]
        return means


GIB = float(1 << 30)
NODE_METERS = (
    "cpu_utilization_percentage", "system_memory_usage_percentage", "disk_usage_percentage",
    "network_receive_megabytes_per_s", "network_transmit_megabytes_per_s",
    "gpu_utilization_percentage", "gpu_memory_usage_percentage",
)  # fmt: skip
RANK_METERS = ("memory_gib", "gpu_peak_gib", "data_wait_share", "corrupt_samples")
SUMMED = ("corrupt_samples",)
"""Rank meters of which the sum is recorded instead of the greatest."""
NODES_LISTED = 16
"""Nodes with records of their own; of more there are only the mean and the extremes."""


class MachineMeters:
    """Reads this rank's numbers and gathers those of all ranks; all ranks make one.

    Args:
        world: this process among all.
        folder: its disk is watched.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self._world, self._folder = world, folder
        self._gpu_load = world.device.type == "cuda" and importlib.util.find_spec("pynvml") is not None
        self._network, self._at_s = psutil.net_io_counters(), time.monotonic()
        psutil.cpu_percent()  # the first call starts the window
        mine: tuple[str, int] = (socket.gethostname(), world.local_rank)
        places: list[tuple[str, int]] = [mine] * world.size
        if world.size > 1:
            torch.distributed.all_gather_object(places, mine)
        self._heads = {host: rank for rank, (host, local) in enumerate(places) if local == 0}

    def gather(self, data_wait_share: float, corrupt_samples: int) -> dict[str, float]:
        """The records of all ranks and nodes, on rank 0; empty elsewhere. All ranks call it.

        Args:
            data_wait_share: of this rank's time, waited for data.
            corrupt_samples: that this rank has met since its start.
        """
        mine = [*self._rank_row(data_wait_share), float(corrupt_samples), *self._node_row()]
        row = torch.tensor(mine, dtype=torch.float32)
        rows = row[None]
        if self._world.size > 1:
            row = row.to(self._world.device)
            parts = [torch.empty_like(row) for _ in range(self._world.size)]
            torch.distributed.all_gather(parts, row)
            rows = torch.stack(parts).cpu()
        return summarise(rows, self._heads) if self._world.rank == 0 else {}

    def _rank_row(self, data_wait_share: float) -> list[float]:
        peak = 0.0
        if self._world.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._world.device) / GIB
            torch.cuda.reset_peak_memory_stats(self._world.device)
        return [psutil.Process().memory_info().rss / GIB, peak, data_wait_share]

    def _node_row(self) -> list[float]:
        network, now = psutil.net_io_counters(), time.monotonic()
        spent_s, before = max(now - self._at_s, 1e-9), self._network
        self._network, self._at_s = network, now
        received, sent = (
            (getattr(network, name) - getattr(before, name)) / 1e6 / spent_s for name in ("bytes_recv", "bytes_sent")
        )
        gpu_load, gpu_memory = -1.0, -1.0
        if self._world.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._world.device)
            gpu_memory = 100.0 * (1.0 - free / total)
            gpu_load = float(torch.cuda.utilization(self._world.device)) if self._gpu_load else -1.0
        memory, disk = psutil.virtual_memory().percent, psutil.disk_usage(str(self._folder)).percent
        return [psutil.cpu_percent(), memory, disk, received, sent, gpu_load, gpu_memory]


def summarise(rows: torch.Tensor, heads: dict[str, int]) -> dict[str, float]:
    """Records out of one row per rank.

    Args:
        rows: (W, len(RANK_METERS) + len(NODE_METERS)).
        heads: host -> its local rank 0.

    Returns:
        Greatest value and its rank of each rank meter; each node's meters, or their mean, least and greatest where
        there are more than `NODES_LISTED` nodes. What a node cannot tell (-1) is left out.
    """
    values: dict[str, float] = {}
    for column, name in enumerate(RANK_METERS):
        if name in SUMMED:
            values[name] = float(rows[:, column].sum())
            continue
        worst = int(rows[:, column].argmax())
        values[name] = float(rows[worst, column])
        if len(rows) > 1:
            values[f"{name}_worst_rank"] = float(worst)
    nodes = rows[list(heads.values()), len(RANK_METERS) :]
    for column, name in enumerate(NODE_METERS):
        known = nodes[:, column]
        if bool((known < 0).any()):
            continue
        if len(heads) <= NODES_LISTED:
            values.update({f"system/{host}/{name}": float(v) for host, v in zip(heads, known, strict=True)})
        else:
            extremes = {"mean": known.mean(), "least": known.min(), "greatest": known.max()}
            values.update({f"system/{word}/{name}": float(v) for word, v in extremes.items()})
    return values
