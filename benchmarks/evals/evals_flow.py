"""How busy the flow evaluation keeps all cores, beside a plain loop over the same pairs.

    python -m benchmarks.evals_flow [--full]

Both sides read, decode and measure the same pairs in MPI-Sintel's layout (1024x436, packaged photos moved by a smooth
flow) with a small model, the zero flow, DIS medium and Farneback, and give the same numbers. Overlapped: as the command
`mcjepa eval flow` does it. Plain: one pair after the other, OpenCV and torch with their own threads. Rounds alternate.
The last line is JSON; `ratio` is the utilisation of the overlapped side: the mean over time of the threads that compute
or could, at most one a core, over the number of cores. So a busy machine, where threads wait for their turn, gives the
same figure as an idle one. The bar is 0.9; `speed_up` is the plain side's time over the overlapped one's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that only wait for others must not look busy

import cv2
import numpy as np
import torch

from mcjepa.data_prep.corpora import FLOW_SCANS
from mcjepa.data_prep.corpora.flow.files import write_flo
from mcjepa.data_prep.corpora.image_files import read_rgb, write_png
from mcjepa.data_prep.corpora.items import FlowPair
from mcjepa.data_prep.corpora.samples import packaged_photos
from mcjepa.evals.flow.methods import FlowMethods, Method, flow_methods
from mcjepa.evals.flow.pairs import MeasuredPair, load_pair, measure_pairs, measure_work
from mcjepa.evals.models import McJepaEvalModel
from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA

HEIGHT, WIDTH = 436, 1024
SAMPLE_EVERY_S = 0.005


def write_pairs(root: Path, count: int) -> list[FlowPair]:
    """Pairs in MPI-Sintel's layout: photos and the same moved by a wave, which is the truth only roughly."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for index, path in enumerate((packaged_photos() * count)[:count]):
        photo = cv2.resize(read_rgb(path), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        flow = np.dstack([6 * np.sin(y / 60 + index), 4 * np.cos(x / 90 + index)]).astype(np.float32)
        moved = cv2.remap(photo, x - flow[..., 0], y - flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        for part in ("clean", "flow", "occlusions", "invalid"):
            (root / f"training/{part}/scene_{index:02d}").mkdir(parents=True, exist_ok=True)
        for number, frame in ((1, photo), (2, moved)):
            write_png(root / f"training/clean/scene_{index:02d}/frame_{number:04d}.png", frame.astype(np.uint8))
        write_flo(root / f"training/flow/scene_{index:02d}/frame_0001.flo", flow)
        mask = np.where(np.hypot(x - 500, y - 200) < 40, np.uint8(255), np.uint8(0))
        for part, image in (("occlusions", mask), ("invalid", np.zeros_like(mask))):
            write_png(root / f"training/{part}/scene_{index:02d}/frame_0001.png", image)
    return FLOW_SCANS["sintel-clean"](root, subset=True).pairs


def small_methods() -> FlowMethods:
    """A model of the quickstart's kind and three baselines."""
    encoder = EncoderConfig(stem_channels=(8, 16), stage_channels=(16, 24, 32, 48), depths=(1, 1, 1, 1))
    config = ModelConfig(encoder=encoder, flow=FlowConfig(width_factor=0.25), expander=ExpanderConfig(widths=(16, 16)))
    torch.manual_seed(0)
    method = Method(name="small", model=McJepaEvalModel(MCJEPA(config), torch.device("cpu")))
    return flow_methods(method, ("zero", "dis-medium", "farneback"))


def plain_loop(pairs: Sequence[FlowPair], methods: FlowMethods) -> list[MeasuredPair]:
    """The same stages, one pair after the other."""
    works = (load_pair(pair, methods) for pair in pairs)
    return [measure_work(replace(work, flow=methods.run_model(work.frames)), methods) for work in works]


class RunnableThreads:
    """Counts, every few milliseconds, the threads of this process that run or wait for a core; a context manager."""

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0))
        self._counts: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RunnableThreads:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def utilisation(self) -> float:
        """Mean number of such threads, at most one a core, over the number of cores."""
        return statistics.mean(min(count, self.cores) for count in self._counts) / self.cores

    def _watch(self) -> None:
        own = threading.get_native_id()
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._counts.append(sum(_state(task) == "R" for task in os.listdir("/proc/self/task") if int(task) != own))


def _state(task: str) -> str:
    try:
        return Path(f"/proc/self/task/{task}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return ""  # it has ended meanwhile


def measured(side: Callable[[], list[MeasuredPair]]) -> tuple[float, float, list[float]]:
    """Seconds, utilisation and the EPEs of one round."""
    start = time.perf_counter()
    with RunnableThreads() as threads:
        items = side()
    return time.perf_counter() - start, threads.utilisation, [item.epe("model") for item in items]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more pairs and rounds")
    full = parser.parse_args().full
    methods = small_methods()
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder), 40 if full else 10)
        sides: dict[str, Callable[[], list[MeasuredPair]]] = {
            "overlapped": lambda: [item for item in measure_pairs(pairs, methods, 0) if isinstance(item, MeasuredPair)],
            "plain": lambda: plain_loop(pairs, methods),
        }
        plain_loop(pairs[:1], methods)  # warms up
        rounds: dict[str, list[tuple[float, float, list[float]]]] = {name: [] for name in sides}
        for _ in range(6 if full else 2):
            for name, side in sides.items():
                rounds[name].append(measured(side))
    assert all(np.allclose(epes, rounds["plain"][0][2]) for found in rounds.values() for _, _, epes in found)
    figures = {}
    for name, found in rounds.items():
        figures[f"{name}_utilisation"] = round(statistics.median(share for _, share, _ in found), 3)
        figures[f"{name}_pairs_s"] = round(len(pairs) / statistics.median(seconds for seconds, _, _ in found), 2)
    ratios = [a[0] / b[0] for a, b in zip(rounds["plain"], rounds["overlapped"], strict=True)]
    figures["speed_up"] = round(statistics.median(ratios), 3)
    ratio = figures["overlapped_utilisation"]
    print(json.dumps({"benchmark": "evals_flow", "ratio": ratio, "bar": 0.9, **figures}))


if __name__ == "__main__":
    main()
