"""`mcjepa infer`: flow and features of the user's own frames and videos."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.pipeline.cli.output import StageProgress
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.exits import OK, PARTIAL, REJECTED

if TYPE_CHECKING:
    from mcjepa.evals.infer.clip import Clip
    from mcjepa.evals.infer.run import ClipResult
    from mcjepa.evals.infer.settings import InferConfig
    from mcjepa.pipeline.stages.inference import Failure


def infer(arguments: argparse.Namespace) -> int:
    """`mcjepa infer`: 4 where some inputs failed, 3 where all did."""
    config = _settings(arguments)
    if arguments.max_frames < 0:
        raise UsageError(f"--max-frames is {arguments.max_frames}, expected 0 for all frames, or more")
    if Path(arguments.out).is_file():
        raise UsageError(f"--out {arguments.out} is a file, expected a folder; choose another")
    from mcjepa.evals.infer.inputs import open_clips
    from mcjepa.pipeline.stages.inference import infer_clips, load_weights

    model, digest = load_weights(arguments.weights, arguments.device)
    clips = open_clips(arguments.inputs, arguments.max_frames)
    with StageProgress("infer") as progress:

        def show(clip: Clip, at: int, total: int) -> None:
            progress.update(clip.name, at, total)

        done, failed = infer_clips(model, digest, clips, config, Path(arguments.out), arguments.overwrite, show)
        for failure in failed:
            progress.note(f"mcjepa: {failure.clip.name}: {failure.reason}")
    print(_as_json(done, failed) if arguments.json else "\n".join(_line(clip, result) for clip, result in done))
    sys.stdout.flush()
    return OK if not failed else PARTIAL if done else REJECTED


def _settings(arguments: argparse.Namespace) -> InferConfig:
    from mcjepa.pipeline.recipe.benchmarks import infer_settings

    content = {
        "tile_px": arguments.tile,
        "overlap_px": arguments.overlap,
        "batch": arguments.batch,
        "stride": arguments.stride,
        "max_flow_px": arguments.max_flow,
    }
    return infer_settings(arguments.write, content)


def _as_json(done: list[tuple[Clip, ClipResult]], failed: list[Failure]) -> str:
    listed: list[dict[str, Any]] = [
        {
            "clip": clip.name,
            "source": list(clip.source),
            "frames": len(clip.frames),
            "folder": str(result.folder),
            "written": [str(path) for path in result.written],
            "kept": result.kept,
            "max_flow_px": result.flow_px,
        }
        for clip, result in done
    ]
    return json.dumps({"clips": listed, "failed": [{"clip": each.clip.name, "reason": each.reason} for each in failed]})


def _line(clip: Clip, result: ClipResult) -> str:
    kept = f", {result.kept} existed already" if result.kept else ""
    return f"{clip.name}: {len(clip.frames)} frames, {len(result.written)} files written to {result.folder}{kept}"
