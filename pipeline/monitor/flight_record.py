"""Flight records: all that is needed to understand a bad step and to run it again, one file a rank.

    RUN/bad_steps/step-000000123-rank-00004.json

A step is a pure function of (weights, its samples, their augmentation, the term weights, the random state): the
stream gives samples and augmentation by the step's number alone, the record holds the rest but the weights.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.lines import PatientFiles
from mcjepa.pipeline.stream.batches import StepBatch

VERSION = 1


def samples_of(batch: StepBatch) -> dict[str, list[str]]:
    """Keys of the samples of each stream."""
    parts = {"pairs": batch.pairs, "views": batch.views}
    return {name: list(part.keys) for name, part in parts.items() if part}


def finite_samples(batch: StepBatch) -> dict[str, list[bool]]:
    """Whether every image of each sample is finite, in the order of `samples_of`."""
    parts = {"pairs": batch.pairs, "views": batch.views}
    return {
        name: torch.stack([x.isfinite().flatten(1).all(1) for x in part.as_dict().values()]).all(0).tolist()
        for name, part in parts.items()
        if part
    }


def numbers(values: Mapping[str, Tensor | float]) -> dict[str, str]:
    """Values as text that JSON can hold and `float` reads: nan and inf are no JSON."""
    return {name: repr(float(value)) for name, value in values.items()}


def write_record(
    folder: Path, step: int, rank: int, content: Mapping[str, Any], state: Mapping[str, Tensor], files: PatientFiles
) -> Path:
    """Writes a flight record.

    Args:
        folder: RUN/bad_steps.
        step: the bad step.
        rank: this rank.
        content: what is known, plain data.
        state: the random state before the step.
        files: keep it while the disk is full.

    Returns:
        The file.
    """
    path = folder / f"step-{step:09d}-rank-{rank:05d}.json"
    texts = {name: base64.b64encode(bytes(value.tolist())).decode() for name, value in state.items()}
    about = {"version": VERSION, "step": step, "rank": rank, "host": socket.gethostname(), "unix_s": int(time.time())}
    files.write(path, json.dumps({**about, **content, "random_state": texts}, indent=1).encode())
    return path


def read_record(path: Path, rank: int) -> dict[str, Any]:
    """The record of this rank: of the file that is named, or of the one beside it for the same step.

    Raises:
        UsageError: there is no such record or it is of another version.
    """
    own = path.with_name(f"{path.name.split('-rank-')[0]}-rank-{rank:05d}.json")
    try:
        record: dict[str, Any] = json.loads((own if own.is_file() else path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(
            f"train.replay={path} cannot be read ({error}), expected a flight record of RUN/bad_steps; name one"
        ) from error
    if record.get("version") != VERSION:
        raise UsageError(
            f"train.replay={path} is of version {record.get('version')}, expected {VERSION}; "
            "replay it with the release that wrote it"
        )
    return record


def state_of(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The random state in a record."""
    texts = record["random_state"]
    return {name: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8) for name, text in texts.items()}
