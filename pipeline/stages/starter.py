"""`mcjepa init`: a commented recipe for videos and photos of one's own, sized to them, to the machine and to a time.

Nothing is decoded but the heads of some files. The time of a step is measured here with the recipe's model on random
frames; on a site whose GPUs this machine lacks it is assumed, and the recipe says so.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from mcjepa.cluster.site import Site, needed
from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.sites import load_site
from mcjepa.pipeline.recipe.files import shipped_recipes
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe
from mcjepa.pipeline.stages.material import Material, look_at_photos, look_at_videos

LEAST_MINUTES = 1.0
STARTS_S = 75.0
"""Of the whole chain's time on a bare machine, what starts, sequences and scores take beside the steps."""
LEAST_SHARE, MARGIN = 0.15, 0.85
"""Of a short time, the share that is trained for; and what is kept for a machine that is slower later."""
LEAST_STEPS = 20
LEAST_PHOTOS, MOST_SEQUENCE_PHOTOS = 4, 255
"""Fewer cannot be held out; more the generator does not take (`MovingPhotosConfig.max_photos`)."""
ASSUMED_STEP_S = 0.5
MANY_FILES_A_MINUTE = 100
GPU_PAIRS, GPU_VIEWS = 16, 32
COMMENT_COLUMN, COMMENT = 34, "\0#"  # the template's own comments, told apart from a `#` in a path

RECIPE = Template("""\
# Written by `mcjepa init` for $material.
# Sized to $machine and about $minutes min$whole: $steps steps of $step_words.
#$commands
#
# What is not here is in the recipe that this one lies over: `mcjepa recipe $file` prints all of it, with --keys every
# key with its meaning. Any key can be given behind a command too: `train.steps=2000`.
base: $base
name: $name
out: $out                # shards, run, scores and report.html

prep:
  moving_photos:                  # sequences with exact flow made of your photos. Some photos are held out of training:
    photos: [$photos]
    max_photos: $max_photos
    heldout_photos: $heldout_photos  # of these, sequences are scored: flow, probe and masks, no labels of yours
    sequences: $sequences
    heldout_sequences: $heldout_sequences
    tiles: $tiles                    # squares of the training photos, for the content branch
  datasets:
    clips:                        # what the motion branch learns on: pairs of frames that follow each other
      corpora:
        - {reader: videos, path: $videos}
        - {reader: videos, path: "$${out}/corpus/moving-photos/train/videos"}
      short_side: $short_side             # px; yours have $video_sides
      max_samples_per_input: $samples     # pairs of one video, spread over it: no more than the steps can take
    images:                       # what the content branch learns on
      corpora:
        - {reader: images, path: $images}$leak
$model
train:
  steps: $steps                   # $step_origin
  stream:
    pair_batch: $pair_batch                 # over all ranks; fewer if memory is short (`mcjepa plan $file`)
    view_batch: $view_batch
$augment  optimizer:
    warmup_steps: $warmup
$engine  checkpoint:
    every_steps: $every          # the same command continues from the newest one
  log_every: $log_every

eval:                             # on the sequences of held-out photos; labels of your own: docs/evaluation.md
  flow:
    sets!: {moving-photos: "$${out}/corpus/moving-photos"}
    subset: false
  probe:
    set: moving-photos
    root: $${out}/corpus/moving-photos
    levels: [2, 3, 4, 5]
    crop_px: 0
    steps: $probe_steps
  vos:
    set: moving-photos
    root: $${out}/corpus/moving-photos
    stride: 4
    short_side: 0
""")
GPU_MODEL = """
model:
  encoder!: {size: tiny}          # the paper's encoder; on GPUs this recipe has not been measured
"""
GPU_AUGMENT = """\
    workers: 4
    augment:
      pair: {crop: [224, 224]}
      view: {size: 160}
"""
GPU_ENGINE = """\
  engine:
    precision: bf16
"""


@dataclass(frozen=True)
class Machine:
    """Where the recipe will run."""

    words: str
    gpus: int
    measurable: bool
    """Whether a step of it can be measured here."""


@dataclass(frozen=True)
class Size:
    """What a time on CPUs pays for."""

    base: str
    sequences: int
    heldout_sequences: int
    tiles: int
    short_side: int
    probe_steps: int


TRIAL = Size("quickstart", 16, 6, 48, 128, 60)
MINUTES = Size("quickstart", 160, 24, 256, 128, 400)
HOUR = Size("nano", 640, 24, 1024, 192, 400)


@dataclass(frozen=True)
class Starter:
    """A recipe that was written."""

    file: Path
    material: str
    steps: int
    step_s: float
    minutes: float
    commands: tuple[str, ...]
    warnings: tuple[str, ...]


def write_starter(videos: str, images: str, site: str | None, minutes: float | None, file: Path) -> Starter:
    """Writes the recipe; what it holds, and the commands that come next.

    Args:
        videos: folder of videos.
        images: folder of photos.
        site: name or file of a site; None: this machine.
        minutes: for the whole chain, or for the training on a site; None: 10 here, the site's time limit there.
        file: of the recipe; a file that is there is not replaced.

    Raises:
        UsageError: the file exists or has the name of a shipped recipe, a folder is missing, or the time is too short.
        DataError: too few readable files.
    """
    _check_file(file)
    place = load_site(site) if site else None
    if minutes is None:
        minutes = needed(place, "train").time_min if place else 10.0
    if minutes < LEAST_MINUTES:
        raise UsageError(f"--minutes {minutes:g}, expected at least {LEAST_MINUTES:g}; give it more")
    clips, photos = look_at_videos(videos), look_at_photos(images, LEAST_PHOTOS)
    machine = _machine(place)
    size = choose_size(minutes, machine, clips)
    values = _values(file, size, machine, clips, photos)
    draft = _fill(values, steps=1000, minutes=minutes, step_s=ASSUMED_STEP_S)
    step_s = _measured(draft, file) if machine.measurable else ASSUMED_STEP_S
    train_s = 60 * minutes if place else max(60 * minutes - STARTS_S, LEAST_SHARE * 60 * minutes)
    steps = max(int(MARGIN * train_s / step_s / 10) * 10, LEAST_STEPS)
    commands = next_commands(file, site)
    words = {
        "commands": "".join(f"\n#   {command}" for command in commands),
        "whole": " of training" if place else " for all stages",
        "step_origin": "measured with random frames" if machine.measurable else (
            f"assumed {ASSUMED_STEP_S:g} s each: take some first, then correct this"
        ),
    }  # fmt: skip
    text = _fill(values | words, steps=steps, minutes=minutes, step_s=step_s, clips=clips.count)
    atomic_write(file, text.encode())
    load_recipe(str(file), [])
    return Starter(
        file, values["material"], steps, step_s, minutes, commands, _warnings((clips, photos), minutes, machine)
    )


def _check_file(file: Path) -> None:
    if file.exists():
        raise UsageError(f"{file} is there already, expected a new file; remove it or choose another with --out FILE")
    if file.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out {file}, expected a name that ends in .yaml")
    if not file.parent.is_dir():
        raise UsageError(f"--out {file}: no folder {file.parent}; make it")
    if file.stem in shipped_recipes():
        raise UsageError(f"--out {file} has the name of a shipped recipe, whose results it would share; choose another")


def _machine(site: Site | None) -> Machine:
    import torch

    here = torch.cuda.device_count()
    if site is None or site.kind in ("local", "debug"):
        cores = len(os.sched_getaffinity(0))
        words = f"{here} GPU{'s' if here > 1 else ''}" if here else f"{cores} CPU core{'s' if cores > 1 else ''}"
        return Machine(f"this machine ({words})", here, True)
    need = needed(site, "train")
    gpus = need.nodes * need.gpus_per_node
    words = f"{need.nodes} node{'s' if need.nodes > 1 else ''} of the site"
    words += f" with {need.gpus_per_node} GPUs each" if gpus else f" with {need.cpus_per_task} cores a task"
    return Machine(words, gpus, bool(here) or not gpus)


def choose_size(minutes: float, machine: Machine, clips: Material) -> Size:
    """What is made and trained in a time: a trial, minutes, or an hour, for which frames must be large enough."""
    if minutes < 3:
        return TRIAL
    if (minutes >= 30 or machine.gpus) and clips.side_px >= HOUR.short_side:
        return HOUR
    return MINUTES


def _values(file: Path, size: Size, machine: Machine, clips: Material, photos: Material) -> dict[str, Any]:
    many = photos.count > MOST_SEQUENCE_PHOTOS
    gpus, base = machine.gpus, load_recipe(size.base, [])[0]
    assert base.train is not None
    stream = base.train.stream
    tiles = '"${out}/corpus/moving-photos/train/images"'
    sides = sorted({min(clips.sides_px), max(clips.sides_px)})
    return {
        "material": f"{_named(clips, 'video')} and {_named(photos, 'photo')}",
        "machine": machine.words,
        "file": shlex.quote(str(file)),
        "name": _quoted(file.stem),
        "out": _quoted(f"outputs/{file.stem}"),
        "base": size.base,
        "photos": _quoted(str(photos.folder)),
        "videos": _quoted(str(clips.folder)),
        "max_photos": min(max(photos.count, LEAST_PHOTOS), MOST_SEQUENCE_PHOTOS),
        "heldout_photos": min(max(photos.count // 10, 2), 24),
        "sequences": size.sequences,
        "heldout_sequences": size.heldout_sequences,
        "tiles": size.tiles,
        "short_side": min(288 if gpus else size.short_side, clips.side_px),
        "video_sides": " to ".join(map(str, sides)),
        "images": _quoted(str(photos.folder)) if many else tiles,
        "leak": "         # all: those held out too, unlabelled" if many else "",
        "model": GPU_MODEL if gpus else "",
        "augment": GPU_AUGMENT if gpus else "",
        "engine": GPU_ENGINE if gpus else "",
        "pair_batch": GPU_PAIRS * gpus or stream.pair_batch,
        "view_batch": GPU_VIEWS * gpus or stream.view_batch,
        "probe_steps": size.probe_steps,
        "commands": "",
        "whole": "",
        "step_origin": "",
    }


def _named(material: Material, word: str) -> str:
    plural = "" if material.count == 1 else "s"
    return f"{material.count} {word}{plural} ({material.side_px} px)"


def _fill(values: dict[str, Any], *, steps: int, minutes: float, step_s: float, clips: int = 1) -> str:
    samples = min(max(-(-steps * int(values["pair_batch"]) // clips), 8), 4096)
    text = Template(RECIPE.template.replace(" # ", f" {COMMENT} ")).substitute(
        values,
        steps=steps,
        minutes=f"{minutes:g}",
        step_words=f"{step_s:.2g} s",
        samples=samples,
        warmup=max(min(steps // 10, 200), 2),
        every=max(steps // 4, 10),
        log_every=max(min(steps // 20, 20), 1),
    )
    lines = re.sub(
        rf"^( +\S.*?|[a-z].*?) +{COMMENT} ",
        lambda line: f"{line[1]:<{COMMENT_COLUMN - 2}}  # ",
        text,
        flags=re.MULTILINE,
    )
    return lines.replace(COMMENT, "#")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # its escapes above U+FFFF are not YAML's


def _measured(draft: str, file: Path) -> float:
    """Seconds of a step of a recipe's text on this machine."""
    trial = file.with_name(f".{file.name}")
    try:
        atomic_write(trial, draft.encode())
        recipe, _ = load_recipe(str(trial), [])
    finally:
        trial.unlink(missing_ok=True)
    return measure_model_s(recipe)


def measure_model_s(recipe: Recipe, steps: int = 3) -> float:
    """Seconds of the model's forward and backward pass on random frames, all terms on, whole batch in one process.

    Several ranks share the batch, so that on all cores of a machine they take as long; with GPUs one rank's share is
    measured. The first pass, slower than the others, does not count.
    """
    import torch

    from mcjepa.model.mcjepa import MCJEPA, TERMS

    assert recipe.train is not None
    stream, gpus = recipe.train.stream, torch.cuda.device_count()
    device = torch.device("cuda" if gpus else "cpu")
    model = MCJEPA(recipe.model).train().to(device)

    def images(count: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (max(count // max(gpus, 1), 2), 3, *size)
        return torch.rand(shape, device=device), torch.rand(shape, device=device)

    pairs = images(stream.pair_batch, stream.augment.pair.crop)
    views = images(stream.view_batch, (stream.augment.view.size,) * 2)
    low = recipe.train.engine.precision != "fp32"
    times = []
    for _ in range(1 + steps):
        began = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
            loss = model(pairs, views, dict.fromkeys(TERMS, 1.0)).loss
        loss.backward()
        if gpus:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def next_commands(file: Path, site: str | None) -> tuple[str, ...]:
    """The commands from a recipe to its report, as they can be pasted."""
    name = str(file)
    if site:
        first = shlex.join(["mcjepa", "plan", name, "--site", site])
        return first, shlex.join(["mcjepa", "launch", "all", name, "--site", site])
    return (
        shlex.join(["mcjepa", "prep", "run", name]),
        shlex.join(["mcjepa", "train", name, "--ranks", "0"]),
        shlex.join(["mcjepa", "eval", "all", name]),
    )


def _warnings(materials: Iterable[Material], minutes: float, machine: Machine) -> tuple[str, ...]:
    found = []
    for material in materials:
        if material.unreadable:
            named = ", ".join(material.unreadable[:3])
            found.append(f"cannot be read, and will be left out by name: {named}")
        if material.count > MANY_FILES_A_MINUTE * minutes:
            found.append(
                f"{material.count} files in {material.folder} may take longer to prepare than {minutes:g} min; "
                "`mcjepa prep plan` estimates it"
            )
    if not machine.measurable:
        found.append(f"a step is assumed to take {ASSUMED_STEP_S:g} s there: correct train.steps after the first ones")
    return tuple(found)
