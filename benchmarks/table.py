"""All measurements, one after the other, as one table: what, ours, peer, ratio, limit.

    python -m benchmarks.table [NAME ...]                  make bench

Each measurement runs as its own command, whose last line is JSON; one that fails or takes too long gets a row that says
so. `ours` and `peer` are the figures behind the ratio where the measurement prints both. Exit code 1: one has failed.
Peers that need environments of their own have a table of theirs, `python -m benchmarks.peer_table`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT_S = 600
"""Ten times what one takes on an idle machine."""
UNITS = {"_samples_s": "a second", "_mb_s": "MB/s", "_ms": "ms", "_s": "s"}
LEFT_OUT = ("gpu_acceptance", "table")
"""It takes its ten minutes and a folder; this file."""


@dataclass(frozen=True)
class Limit:
    """What is compared, and what the ratio has to be."""

    what: str
    sign: str = ""
    bar: float = 0.0
    ours: str = ""
    """Key of our figure in the last line; empty where there is none."""
    peer: str = ""


LIMITS = {
    "class_mix": Limit("classes in 100 steps ÷ those asked for", "≥", 1),
    "evals_flow": Limit("cores kept busy by flow evaluation", "≥", 0.9, "overlapped_utilisation", "plain_utilisation"),
    "evals_probe_cache": Limit("probe's epoch: encoder in every step ÷ cached", "≥", 10),
    "gpu_kernels": Limit("predicted step on an H100: eager ÷ compiled"),
    "help": Limit("mcjepa --help ÷ starting Python", "", 0, "help_s", "python_s"),
    "house": Limit("folders, circles, crumbs, files entered ÷ bars", "≤", 1),
    "model_bf16": Limit("whole step of tiny: fp32 ÷ bf16", "≥", 2, "bf16_ms", "fp32_ms"),
    "model_correlation": Limit("loop over displacements ÷ ours", "≥", 3),
    "model_covariance": Limit("DxD covariance ÷ NxN identity", "≥", 5, "identity_ms", "by_features_ms"),
    "model_step": Limit("straightforward ÷ ours, same precision", "≥", 1.5, "ours_fp32_ms", "straightforward_fp32_ms"),
    "prep_filters": Limit("prep: all filters ÷ none"),
    "prep_kill_rounds": Limit("prep killed: rounds with the same dataset", "≥", 1),
    "prep_photos_vs_loop": Limit("a photo: twenty lines ÷ ours", "≥", 0.9),
    "prep_plan_million": Limit("planning a million inputs ÷ allowed", "≤", 1),
    "prep_plan_parallel": Limit("planning by one process ÷ by two", "≥", 1.7, "two_s", "one_s"),
    "prep_ray_overhead": Limit("a minute by Ray ÷ by two processes", "≤", 1.05),
    "prep_scaling": Limit("two workers ÷ one", "≥", 1.7, "two_samples_s", "one_samples_s"),
    "prep_store": Limit("prep into S3 ÷ into a folder", "≥", 0.9, "s3_samples_s", "local_samples_s"),
    "prep_ten_times": Limit("ten times the inputs ÷ ten times one", "≤", 1.05, "ten_s", "one_s"),
    "prep_video_vs_ffmpeg": Limit("a video's frame: ffmpeg, tar ÷ ours", "≥", 1, "ours_ms", "ffmpeg_ms"),
    "prep_worker": Limit("a worker ÷ a tight loop of its calls", "≥", 0.85),
    "scale_nodes": Limit("512 nodes: readings of the manifest ÷ nodes", "≤", 1),
    "scale_order": Limit("opening a billion samples ÷ allowed", "≤", 1),
    "scale_plan": Limit("manifest of a million shards ÷ allowed", "≤", 1),
    "scale_requests": Limit("requests a sample ÷ allowed", "≤", 1),
    "scale_start": Limit("8 ranks over a million shards ÷ allowed", "≤", 1),
    "shard_writing": Limit("our writer ÷ ShardWriter", "≥", 1, "ours_mb_s", "webdataset_reproducible_mb_s"),
    "start_up": Limit("to the first step ÷ import torch, deepspeed", "≤", 1, "first_step_cpu_s", "bare_cpu_s"),
    "stream_limit": Limit("stream ÷ a tight loop of its calls", "≥", 0.95),
    "stream_resume": Limit("opening at epoch 90 ÷ at the first step", "≤", 1, "late_s", "early_s"),
    "stream_store": Limit("stream from S3 ÷ from a folder", "≥", 0.9, "s3_samples_s", "local_samples_s"),
    "stream_webdataset": Limit("stream ÷ webdataset", "≥", 1.3, "stream_samples_s", "webdataset_samples_s"),
    "train_data_wait": Limit("share of a step that waits for data ÷ 2 %", "≤", 1),
    "train_kill_rounds": Limit("training killed: rounds with the same losses", "≥", 1),
    "train_meters": Limit("step with meters ÷ without"),
    "train_overhead": Limit("step through DeepSpeed ÷ bare PyTorch", "≤", 1.05, "deepspeed_ms", "bare_ms"),
    "train_save_wait": Limit("wait for a save: in the background ÷ not", "≤", 1, "copy_s", "foreground_s"),
    "train_shared_cores": Limit("all cores ÷ one thread, beside a job", "≤", 1.3),
    "vos_propagation": Limit("all against all ÷ our tiles", "≥", 1, "ours_s", "dense_s"),
}


def names() -> list[str]:
    """Every measurement that prints a last line."""
    files = sorted(HERE.glob("**/*.py"), key=lambda path: path.stem)
    return [f.stem for f in files if f.stem not in LEFT_OUT and '"benchmark":' in f.read_text(encoding="utf-8")]


def measure(name: str) -> dict[str, Any]:
    """The last line of a measurement; `problem` alone where it has none."""
    try:
        words = [sys.executable, "-m", f"benchmarks.{name}"]
        done = subprocess.run(words, cwd=HERE.parent, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"problem": f"not done after {LIMIT_S} s"}
    said = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines() or [""]
    try:
        found = json.loads(said[-1])
        return found if "ratio" in found else {"problem": f"no ratio: {said[-1]}"}
    except (json.JSONDecodeError, TypeError):
        return {"problem": f"exit code {done.returncode}: {said[-1]}"}


def row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Name, what, ours, peer, ratio, limit, and a word where the limit is missed."""
    limit = LIMITS.get(name, Limit("", "", float(found.get("bar", 0))))
    if problem := found.get("problem"):
        return name, limit.what, "", "", "", "", f"failed: {problem[:80]}"
    figures = (_figure(found, key) for key in (limit.ours, limit.peer))
    ratio = float(found["ratio"])
    missed = (limit.sign == "≥" and ratio < limit.bar) or (limit.sign == "≤" and ratio > limit.bar)
    bar = f"{limit.sign} {limit.bar:g}".strip() if limit.bar else ""
    return name, limit.what, *figures, f"{ratio:g}", bar, "missed" if missed else ""


def _figure(found: Mapping[str, Any], key: str) -> str:
    """A figure with the unit that its key ends with."""
    unit = next((word for end, word in UNITS.items() if key.endswith(end)), "")
    return f"{found[key]} {unit}".strip() if key in found else ""


def main() -> int:
    """Run them and print the table."""
    rows: list[tuple[str, ...]] = [("measurement", "what", "ours", "peer", "ratio", "limit", "")]
    for name in sys.argv[1:] or names():
        print(f"{name} …", file=sys.stderr, flush=True)
        rows.append(row(name, measure(name)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for each in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(each, widths, strict=True)).rstrip())
    print("peers in environments of their own: python -m benchmarks.peer_table")
    return int(any(each[-1].startswith("failed") for each in rows))


if __name__ == "__main__":
    sys.exit(main())
