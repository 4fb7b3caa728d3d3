"""The weights that a run has written so far, in a folder or on s3, for stages that run elsewhere and meanwhile.

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
from mcjepa.model.pretrained import CONFIG_NAME, WEIGHTS_NAME
from mcjepa.pipeline.run.folder import WEIGHTS

REPORT = "train_report.json"
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
        folder = self._cache / name
        for file in (WEIGHTS_NAME, CONFIG_NAME):
            key = f"{WEIGHTS}/{name}/{file}"
            if not (folder / file).is_file() or (folder / file).stat().st_size != self._store.size(key):
                folder.mkdir(parents=True, exist_ok=True)
                self._store.download(key, folder / file)
        return folder

    def forget(self, name: str) -> None:
        """Removes what `fetch` brought here; a run's own folder is never touched."""
        if not isinstance(self._store, FolderStore):
            shutil.rmtree(self._cache / name, ignore_errors=True)

    def is_finished(self, steps: int) -> bool:
        """Whether the training has said that it finished at least `steps` steps."""
        if not self._store.exists(REPORT):
            return False
        record = json.loads(self._store.read(REPORT))
        return bool(record["finished"]) and int(record["steps"]) >= steps
