"""Weights of a run: what it starts from, and what it has written so far for stages that run elsewhere meanwhile.

RUN/weights/step-000001200/{model.safetensors, config.json}     complete when both are there
RUN/train_report.json                                           the training's last word: `finished`, `steps`
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

from mcjepa.data_prep.storage import open_store
from mcjepa.data_prep.storage.folder import FolderStore
from mcjepa.model.initialize import initialize
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.pretrained import CONFIG_NAME, WEIGHTS_NAME, WeightsError
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.folder import TRAIN_REPORT, WEIGHTS, read_run_record

log = logging.getLogger(__name__)


class RunWeights:
    """Weights folders of one run.

    Args:
        run: the run's folder or prefix (`train.run`).
        cache: local folder that weights on s3 are brought to; unused for a run in a folder.
    """

    def __init__(self, run: str, cache: Path) -> None:
        self._store = open_store(run)
        self._cache = cache

    @property
    def location(self) -> str:
        """Where the run is."""
        return self._store.location

    def names(self) -> list[str]:
        """Names of the complete weights folders, oldest first, such as step-000001200."""
        found: dict[str, set[str]] = {}
        for entry in self._store.files(f"{WEIGHTS}/"):
            folder, _, file = entry.key.removeprefix(f"{WEIGHTS}/").rpartition("/")
            if folder.startswith("step-") and "/" not in folder:
                found.setdefault(folder, set()).add(file)
        return sorted(name for name, files in found.items() if {WEIGHTS_NAME, CONFIG_NAME} <= files)

    def fetch(self, name: str) -> Path:
        """A weights folder on this machine.

        Raises:
            DataError, OSError: it cannot be read; the run may have removed it meanwhile.
        """
        if isinstance(self._store, FolderStore):
            return self._store.path(f"{WEIGHTS}/{name}")
        self.forget(name)  # files of a killed command may be another run's, whose sizes are the same
        folder = self._cache / name
        folder.mkdir(parents=True)
        for file in (WEIGHTS_NAME, CONFIG_NAME):
            self._store.download(f"{WEIGHTS}/{name}/{file}", folder / file)
        return folder

    def forget(self, name: str) -> None:
        """Removes what `fetch` brought here; a run's own folder is never touched."""
        if not isinstance(self._store, FolderStore):
            shutil.rmtree(self._cache / name, ignore_errors=True)

    def is_finished(self, steps: int) -> bool:
        """Whether the training has said that it finished at least `steps` steps."""
        if not self._store.exists(TRAIN_REPORT):
            return False
        record = json.loads(self._store.read(TRAIN_REPORT))
        return bool(record["finished"]) and int(record["steps"]) >= steps


def load_initial_weights(model: MCJEPA, init_from: str, run: Path, *, continued: bool) -> dict[str, str] | None:
    """Loads weights into the model of a new run; every rank calls it before the engine is built.

    Args:
        model: changed in place.
        init_from: `train.init_from`.
        run: the run's local folder.
        continued: whether the run goes on from a checkpoint; then nothing is read.

    Returns:
        File, layout and sha256 for run.json and the weights' lineage, those of its start for a continued run (on
        rank 0's node); None for random weights.

    Raises:
        UsageError: the weights are absent, damaged or do not fit.
    """
    if continued:
        return read_run_record(run).get("init_from")
    if not init_from:
        return None
    try:
        found = initialize(model, init_from)
    except WeightsError as error:
        raise UsageError(f"train.init_from: {error}") from error
    log.info("starting from %s", found)
    return {"file": str(found.file), "layout": found.layout, "sha256": found.digest}
