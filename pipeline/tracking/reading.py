"""What MLflow has of a run: its tags and the files of its lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.tracking.mlflow import describe_error, open_client


@dataclass(frozen=True)
class RecordedRun:
    """A run of MLflow."""

    status: str
    tags: Mapping[str, str]
    run: str
    """Where a training's folder was; empty for other stages."""
    inputs: tuple[str, ...]
    """Locations of its datasets."""


def fetch_run(uri: str, run_id: str, wanted: Sequence[str], folder: Path) -> RecordedRun:
    """Reads a run and brings files of it here.

    Args:
        uri: tracking server or `sqlite:///file`.
        run_id: of MLflow.
        wanted: artifacts; a folder's name brings the files in it, and what is not there is left out.
        folder: where they are put, each below its own name.

    Raises:
        UsageError: there is no such run, or MLflow does not answer.
    """
    client = open_client(uri)
    try:
        found = client.get_run(run_id)
        for path in _artifacts(client, run_id, wanted):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)  # stores differ in what they put below a folder
            Path(client.download_artifacts(run_id, path, str(folder))).replace(folder / path)
    except Exception as error:
        raise UsageError(
            f"MLflow at {uri} does not show run {run_id} ({describe_error(error)}); correct its id, or name another "
            "location by --tracking"
        ) from error
    sources = (item.dataset.source for item in found.inputs.dataset_inputs)
    return RecordedRun(found.info.status, found.data.tags, found.data.params.get("train.run", ""), tuple(sources))


def _artifacts(client: Any, run_id: str, wanted: Sequence[str]) -> list[str]:
    there = [item.path for item in client.list_artifacts(run_id)]
    files = [path for path in wanted if path in there]
    for folder in {path.split("/")[0] for path in wanted if "/" in path} & set(there):
        inside = [item.path for item in client.list_artifacts(run_id, folder) if not item.is_dir]
        files += [path for path in inside if path in wanted or f"{folder}/*" in wanted]
    return files
