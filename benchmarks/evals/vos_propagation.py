"""Labels of a frame tile by tile, beside the same by all cells against all cells; and the memory of a whole video.

    python -m benchmarks.vos_propagation [--full]

Time: DINO's protocol on its grid of 60 x 104 cells, 32 channels (the `nano` encoder's at stride 8), 8 context frames.
The other side is what the published code does, with its queries taken 100 at a time as CRW does, without which its
affinity alone is 1.2 GB: all cells of all context frames, those out of reach masked, top-k. The sides alternate in one
process with one thread, whose processor time counts; figures are medians, and both give the same labels.

Memory: the peak of a fresh process that scores a video of 90 frames of 854x480 px with `nano`, masks and overlay
written; the bar is 1.5 GiB. The video is made here: a photo's noise that moves, and a square mask on it.

The last line is JSON; `ratio` is the time of all cells over ours, `memory_ratio` used over allowed (bar: 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.data_prep.corpora.image_files import write_id_png
from mcjepa.data_prep.corpora.items import MaskedVideo
from mcjepa.evals.vos.propagation import Cells, label_frame
from mcjepa.evals.vos.settings import PRESETS, VosConfig

GRID, CHANNELS, LABELS = (60, 104), 32, 3
ALLOWED_MIB = 1536
QUERIES = 100
SIZE, FRAMES = (480, 854), 90


def label_frame_densely(query_Chw: Tensor, context: Sequence[Cells], config: VosConfig) -> Tensor:
    """The same labels from every cell of the context, part of the queries at a time."""
    height, width = query_Chw.shape[1:]
    keys = torch.cat([features.flatten(1) for features, _ in context], 1)
    values = torch.cat([labels.flatten(1) for _, labels in context], 1)
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    parts = []
    for part in torch.arange(height * width).split(QUERIES):
        near = (rows[part, None] - rows).abs() <= config.radius_cells
        near &= (columns[part, None] - columns).abs() <= config.radius_cells
        affinity = query_Chw.flatten(1)[:, part].T @ keys
        affinity.unflatten(1, (len(context), -1)).masked_fill_(~near[:, None], float("-inf"))
        best, index = affinity.topk(config.top_k, dim=1)
        parts.append((values[:, index] * torch.softmax(best / config.temperature, 1)).sum(-1))
    return torch.cat(parts, 1).unflatten(1, (height, width))


def measure_time(rounds: int) -> dict[str, float]:
    """Median seconds of processor time of both sides."""
    config = VosConfig()
    context = [_cells() for _ in range(config.context_frames + 1)]
    query, _ = _cells()
    torch.testing.assert_close(label_frame(query, context, config), label_frame_densely(query, context, config))
    spent: dict[str, list[float]] = {"ours": [], "dense": []}
    for _ in range(rounds):
        for name, side in (("ours", label_frame), ("dense", label_frame_densely)):
            started = time.process_time()
            side(query, context, config)
            spent[name].append(time.process_time() - started)
    return {name: statistics.median(times) for name, times in spent.items()}


def _cells() -> Cells:
    return F.normalize(torch.randn(CHANNELS, *GRID), dim=0), torch.rand(LABELS, *GRID).softmax(0)


def write_video(folder: Path) -> MaskedVideo:
    """A moving texture with a moving square."""
    texture = cv2.resize(np.random.default_rng(0).integers(0, 256, (80, 160, 3), np.uint8), (1280, 640))
    frames, masks = [], []
    for number in range(FRAMES):
        frames.append(folder / f"{number:05d}.jpg")
        masks.append(folder / f"{number:05d}.png")
        cv2.imwrite(str(frames[-1]), texture[number : number + SIZE[0], 2 * number : 2 * number + SIZE[1]])
        mask = np.zeros(SIZE, np.uint8)
        mask[200 - number : 320 - number, 400 - 2 * number : 560 - 2 * number] = 1
        write_id_png(masks[-1], mask)
    return MaskedVideo("texture", tuple(frames), tuple(masks))


def peak_of_video(folder: Path, preset: str) -> float:
    """Scores the video of `folder` and returns this process's peak, MiB; it runs in a process of its own."""
    from mcjepa.evals.models import LoadedModel, McJepaEvalModel
    from mcjepa.evals.vos.score import score_vos_set
    from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
    from mcjepa.model.mcjepa import MCJEPA

    encoder = EncoderConfig(size="nano", init_std=0.0)
    config = ModelConfig(encoder=encoder, flow=FlowConfig(width_factor=0.5), expander=ExpanderConfig(widths=(64,)))
    loaded = LoadedModel(model=McJepaEvalModel(MCJEPA(config), torch.device("cpu")), name="nano")
    settings = VosConfig(**PRESETS[preset], masks=True, overlays=True, pictures=1)
    frames, masks = (tuple(sorted(folder.glob(f"*.{suffix}"))) for suffix in ("jpg", "png"))
    score = score_vos_set(loaded, folder, [MaskedVideo("texture", frames, masks)], settings, folder / "out")
    if score.card.frames != FRAMES - 2:
        raise RuntimeError(f"{score.card.frames} frames were scored, expected {FRAMES - 2}: {score.card.failed}")
    # Not ru_maxrss, which a new program takes over from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure_memory(preset: str) -> float:
    """Peak MiB of a fresh process over the whole video."""
    with tempfile.TemporaryDirectory() as place:
        write_video(Path(place))
        command = [sys.executable, "-m", "benchmarks.vos_propagation", "--peak", place, preset]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="more rounds, and the memory of the other protocols too")
    parser.add_argument("--peak", nargs=2, metavar=("DIR", "PRESET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.peak:
        print(peak_of_video(Path(arguments.peak[0]), arguments.peak[1]))
        return
    seconds = measure_time(rounds=9 if arguments.full else 3)
    peaks = {preset: round(measure_memory(preset)) for preset in (PRESETS if arguments.full else ["dino"])}
    document = {
        "benchmark": "vos_propagation",
        "ratio": round(seconds["dense"] / seconds["ours"], 2),
        "ours_s": round(seconds["ours"], 3),
        "dense_s": round(seconds["dense"], 3),
        "memory_ratio": round(max(peaks.values()) / ALLOWED_MIB, 2),
        "peak_mib": peaks,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
