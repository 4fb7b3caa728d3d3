"""`mcjepa infer`: flow and features of the user's own frames and videos."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.pipeline.cli.output import StageProgress
from mcjepa.pipeline.errors import UsageError

if TYPE_CHECKING:
    from mcjepa.evals.infer.clip import Clip
    from mcjepa.evals.infer.run import ClipResult
    from mcjepa.evals.infer.settings import InferConfig
    from mcjepa.evals.subject import McJepaUnderTest

PARTIAL, REJECTED = 4, 3


def run_infer(arguments: argparse.Namespace) -> int:
    """Writes the results of every input; one that fails is named and the others are done."""
    from mcjepa.evals.infer.inputs import open_clips

    config = _settings(arguments)
    if arguments.max_frames < 0:
        raise UsageError(f"--max-frames is {arguments.max_frames}, expected 0 for all frames, or more")
    if Path(arguments.out).is_file():
        raise UsageError(f"--out {arguments.out} is a file, expected a folder; choose another")
    weights = Path(arguments.weights)
    if not weights.is_dir():
        raise UsageError(f"no weights folder {weights}, expected one with model.safetensors and config.json")
    clips = open_clips(arguments.inputs, arguments.max_frames)
    model, digest = _load(weights, arguments.device)
    done, failed = _infer_all(model, digest, clips, config, arguments)
    _report(done, failed, arguments.json)
    if failed:
        return PARTIAL if done else REJECTED
    return 0


def _settings(arguments: argparse.Namespace) -> InferConfig:
    import difflib

    from mcjepa.evals.infer.settings import PRODUCTS, InferConfig
    from mcjepa.pipeline.recipe.files import validate

    names = [name.strip() for name in arguments.write.split(",") if name.strip()]
    for name in names:
        if name not in PRODUCTS:
            near = difflib.get_close_matches(name, PRODUCTS, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(PRODUCTS)}"
            raise UsageError(f"--write has {name!r}: {advice}")
    content = {
        "write": names,
        "tile_px": arguments.tile,
        "overlap_px": arguments.overlap,
        "batch": arguments.batch,
        "stride": arguments.stride,
        "max_flow_px": arguments.max_flow,
    }
    return validate(InferConfig, content, "infer")


def _load(weights: Path, device: str) -> tuple[McJepaUnderTest, str]:
    from mcjepa.evals.subject import choose_device, load_model, read_weights

    try:
        known = read_weights(weights)
        return load_model(known.folder, choose_device(device)), known.digest
    except ValueError as error:
        raise UsageError(str(error)) from error
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename} is not there, expected a whole weights folder; export it again") from error


def _infer_all(
    model: McJepaUnderTest, digest: str, clips: list[Clip], config: InferConfig, arguments: argparse.Namespace
) -> tuple[list[tuple[Clip, ClipResult]], list[tuple[Clip, str]]]:
    from mcjepa.data_prep.errors import DataError
    from mcjepa.evals.infer.run import infer_clip

    done: list[tuple[Clip, ClipResult]] = []
    failed: list[tuple[Clip, str]] = []
    with StageProgress("infer") as progress:
        for clip in clips:

            def show(at: int, total: int, name: str = clip.name) -> None:
                progress.update(name, at, total)

            try:
                result = infer_clip(model, digest, clip, config, Path(arguments.out), arguments.overwrite, show)
                done.append((clip, result))
            except DataError as error:
                failed.append((clip, str(error)))
                progress.note(f"mcjepa: {clip.name}: {error}")
    return done, failed


def _report(done: list[tuple[Clip, ClipResult]], failed: list[tuple[Clip, str]], as_json: bool) -> None:
    if as_json:
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
        print(json.dumps({"clips": listed, "failed": [{"clip": c.name, "reason": why} for c, why in failed]}))
        return
    for clip, result in done:
        kept = f", {result.kept} were there already" if result.kept else ""
        print(f"{clip.name}: {len(clip.frames)} frames, {len(result.written)} files written to {result.folder}{kept}")
    sys.stdout.flush()
