"""A very small recipe of all three stages over a bucket, a site of two Slurm nodes, and `mcjepa launch` with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.pipeline.run.folder import read_metrics
from tests.data_prep.small_corpora import smooth_frames

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILE = "shards"
STEPS = 60


def write_recipe(root: Path, shards: str, steps: int = STEPS) -> Path:
    """Writes a recipe whose corpora are below `root` and whose datasets go to the location `shards`."""
    (root / "videos").mkdir()
    for number in range(4):
        write_mp4(root / "videos" / f"{number}.mp4", smooth_frames(number, 8, 64, 96), 10, 20)
    videos = [{"reader": "videos", "path": str(root / "videos")}]
    common: dict[str, Any] = {"corpora": videos, "short_side": 48, "inputs_per_shard": 1, "clip_stride": 1}
    content: dict[str, Any] = {
        "base": "quickstart",
        "name": "small",
        "out": str(root / "out"),
        "datasets": shards,
        "prep!": {
            "root": "${datasets}",
            "moving_photos": {"out": "${out}/photos", "sequences": 1, "heldout_sequences": 2, "size": 64, "frames": 3,
                              "tiles": 0},
            "datasets": {"clips": {"kind": "clip", **common}, "images": {"kind": "image", **common}},
        },
        "model": {
            "encoder": {"stem_channels": [4, 8], "stage_channels": [8, 8, 8, 8]},
            "flow": {"widths": [8, 8], "context_widths": [8, 8], "context_dilations": [1, 2], "coarsest_stride": 8},
            "expander": {"widths": [16, 16]},
        },
        "train": {
            "steps": steps,
            "log_every": 1,
            "checkpoint": {"every_steps": 4},
            "engine": {"zero_stage": 2, "threads": 1},
            "stream": {
                "pairs": [{"location": "${datasets}/clips"}], "views": [{"location": "${datasets}/images"}],
                "pair_batch": 4, "view_batch": 4,
                "augment": {"pair": {"crop": [32, 32]}, "view": {"size": 32}},
            },
        },
        "eval!": {"threads": 1, "flow": {"sets": {"moving-photos": "${out}/photos"}, "baselines": ["zero"]}},
    }  # fmt: skip
    path = root / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_site(root: Path, server: dict[str, str] | None = None, **site: Any) -> Path:
    """Writes a site of two nodes; keys of an S3 server go to a file of profiles that only we can read."""
    environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "AWS_EC2_METADATA_DISABLED": "true"}
    content: dict[str, Any] = {
        "kind": "slurm",
        "default": {"nodes": 2, "cpus_per_task": 2, "time_min": 10},
        "grace_s": 40,
        "environment": environment,
        **site,
    }
    if server:
        keys = root / "profiles"
        keys.touch(mode=0o600)
        keys.write_text(
            f"[{PROFILE}]\naws_access_key_id = {server['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {server['AWS_SECRET_ACCESS_KEY']}\nregion = {server['AWS_DEFAULT_REGION']}\n"
        )
        environment["AWS_SHARED_CREDENTIALS_FILE"] = str(keys)
        content |= {"s3_profile": PROFILE, "s3_endpoint": server["AWS_ENDPOINT_URL"]}
    path = root / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def launch(*words: str, code: int = 0, within_s: float = 120) -> str:
    """Output of `mcjepa launch`."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    answer = subprocess.run(
        [sys.executable, "-m", "mcjepa", "launch", *words],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=within_s,
    )  # fmt: skip
    assert answer.returncode == code, answer.stdout + answer.stderr
    return answer.stdout


def launch_job(*words: str) -> str:
    """Id of the job that was submitted."""
    ids = json.loads(launch(*words, "--json"))["ids"]
    assert len(ids) == 1
    return str(ids[0])


def losses(run: Path) -> dict[int, float]:
    """Loss of every step in a run's log."""
    return {int(record["step"]): record["loss"] for record in read_metrics(run / "logs" / "metrics.jsonl")}


def steps_written(run: Path) -> int:
    """Lines in a run's log: steps that were trained, those trained again counted again."""
    path = run / "logs" / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0
