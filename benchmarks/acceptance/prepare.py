"""What the checks need and a machine with a GPU may lack: shards, a corpus with flow, references, names of wheels."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
CORPUS = ("prep.moving_photos.sequences=96", "prep.moving_photos.heldout_sequences=8", "prep.moving_photos.tiles=192")
LARGE = (  # frames and photos of the size that the paper's recipe decodes
    "prep.moving_photos.size=448", "prep.moving_photos.sequences=8", "prep.moving_photos.heldout_sequences=2",
    "prep.moving_photos.tiles=64", "prep.moving_photos.tile_px=384", "prep.datasets.clips.short_side=448",
    "prep.datasets.clips.max_samples_per_input=3", "prep.datasets.clips.encoding=png",
    "prep.datasets.images.short_side=384",
)  # fmt: skip
MODULES = ("mcjepa.pipeline.train", "mcjepa.pipeline.cli.main", "mcjepa.pipeline.stages.evaluation", "deepspeed")


def prepare(folder: Path) -> dict[str, Any]:
    """Fills the folder, which may exist.

    Raises:
        RuntimeError: it grew beyond what is meant to be carried.
    """
    from benchmarks.acceptance.operations import write_references

    folder.mkdir(parents=True, exist_ok=True)
    write_references(folder / "references.safetensors")
    for name, overrides in (("small", CORPUS), ("large", LARGE)):
        words = [sys.executable, "-m", "mcjepa", "prep", "run", "quickstart", f"out={folder / name}", *overrides]
        subprocess.run(words, check=True, stdout=sys.stderr)
    shutil.rmtree(folder / "large" / "corpus")
    for name in ("train", "videos"):
        shutil.rmtree(folder / "small" / "corpus" / "moving-photos" / name, ignore_errors=True)
    (folder / "wheels.txt").write_text("".join(f"{line}\n" for line in wheels()), encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise RuntimeError(
            f"{folder} holds {size >> 20} MiB, expected at most {MOST_BYTES >> 20}; make fewer sequences"
        )
    return {"prepared": str(folder), "mib": round(size / 2**20, 1)}


def wheels() -> list[str]:
    """`NAME==VERSION` of all distributions that the checks import, without torch and what it brings."""
    script = f"import sys, json, {', '.join(MODULES)}; print(json.dumps(sorted(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    imported = {name.partition(".")[0] for name in json.loads(said.strip().rpartition("\n")[2])}
    owners = packages_distributions()
    own = {re.split(r"[ <>=!~;\[(]", line)[0].lower() for line in requires("torch") or ()} | {"torch", "mcjepa"}
    names = {name for package in imported for name in owners.get(package, ()) if name.lower() not in own}
    return sorted(f"{name}=={version(name)}" for name in names)
