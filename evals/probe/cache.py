"""The folder of cached features: who makes them, who waits, what makes room.

    CACHE/KEY/        see feature_file.py
    CACHE/heads/      see fitting.py
    CACHE/KEY.lock    held alone by the process that encodes, shared by those that read

Features are encoded once for each encoder, list of images and preprocessing; every later head, seed or run maps them
into memory. A second process that wants the same ones waits for the first. The folder stays below its limit: what was
unused longest and is not in use makes room; when that is not enough, nothing is written and the error says how much is
needed. Images that could not be read are tried again before the others' features are used. Removing CACHE or a KEY in
it loses nothing but time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from mcjepa.data_prep.corpora.items import LabelledImage
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import atomic_write, explained_disk_errors
from mcjepa.evals.models import EvalModel
from mcjepa.evals.probe.feature_file import COMPLETE, FeatureFile, FeatureWriter, folder_bytes
from mcjepa.evals.probe.features import EncodingPlan, encode_images, features_key, is_readable, model_digest

RESERVE_BYTES = 256 << 20
"""Left free on the disk for others."""
log = logging.getLogger(__name__)


class FeatureCache:
    """Features by key in one folder; a context manager that lets go of them at its end.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path, *, most_gib: float, dtype: str, batch: int, keep: bool = True) -> None:
        """A cache in `root`, made when it is first needed.

        Args:
            root: the folder.
            most_gib: most that it may hold.
            dtype: number format, float16 or float32.
            batch: images encoded together.
            keep: leave the features at the end; else remove those that were used.
        """
        self.root, self._most, self._keep = root, int(most_gib * 2**30), keep
        self._dtype, self._batch = dtype, batch
        self._used: dict[str, BinaryIO] = {}
        self._passing: set[str] = set()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *details: object) -> None:
        for key, lock in self._used.items():
            lock.close()
            if not self._keep or key in self._passing:
                self._remove(key)
        self._used.clear()

    def features(
        self,
        model: EvalModel,
        items: Sequence[LabelledImage],
        images: str,
        plan: EncodingPlan,
        on_image: Callable[[int], None] = lambda done: None,
    ) -> FeatureFile:
        """The features of images, read where they are known and encoded where not.

        Args:
            model: the encoder.
            items: images with labels.
            images: their digest, `images.images_digest`.
            plan: what is done to them.
            on_image: called with the number of images done.

        Raises:
            DataError: the features do not fit into the limit or on the disk.
        """
        known = model_digest(model)
        key, parts = features_key(known or uuid.uuid4().hex, images, plan, self._dtype, self._batch)
        if not known:
            self._passing.add(key)
        folder = self.root / key
        if key not in self._used:
            with explained_disk_errors(str(self.root)):
                self.root.mkdir(parents=True, exist_ok=True)
                self._drop_passing_failures(key, items, plan)
                self._used[key] = (self.root / f"{key}.lock").open("ab")
            self._finish(key, parts, model, items, plan, on_image)
        else:
            on_image(len(items))
        with contextlib.suppress(OSError):
            os.utime(folder / COMPLETE)  # what makes room is what was used longest ago
        return FeatureFile(folder, self._dtype)

    def _drop_passing_failures(self, key: str, items: Sequence[LabelledImage], plan: EncodingPlan) -> None:
        """Removes finished features that lack an image which can be read now.

        The key has the images' bytes: what failed by these fails again, an error of the disk or the network does not.
        """
        folder = self.root / key
        with contextlib.suppress(FileNotFoundError):  # not finished, or another process made room
            places = FeatureFile(folder, self._dtype).failed_places
            mended = next((items[place].name for place in places if is_readable(items[place], plan)), None)
            if mended is not None and self._remove(key):
                log.warning("%s can be read again: the images of %s are encoded anew", mended, folder)
            elif mended is not None:
                log.warning("%s can be read again, but %s, in use by another process, is without it", mended, folder)

    def _finish(
        self,
        key: str,
        parts: dict[str, object],
        model: EvalModel,
        items: Sequence[LabelledImage],
        plan: EncodingPlan,
        on_image: Callable[[int], None],
    ) -> None:
        """Encodes what is missing under the lock, which is shared afterwards."""
        folder, lock = self.root / key, self._used[key]
        while not (folder / COMPLETE).is_file():
            with _locked_alone(lock, folder):
                if (folder / COMPLETE).is_file():
                    break
                self._encode(folder, parts, model, items, plan, on_image)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not (folder / COMPLETE).is_file():  # another process made room between the two locks
            self._finish(key, parts, model, items, plan, on_image)
        on_image(len(items))

    def _encode(
        self,
        folder: Path,
        parts: dict[str, object],
        model: EvalModel,
        items: Sequence[LabelledImage],
        plan: EncodingPlan,
        on_image: Callable[[int], None],
    ) -> None:
        atomic_write(folder / "key.json", (json.dumps(parts, indent=1) + "\n").encode())
        writer = FeatureWriter(folder, self._dtype, self._batch)
        with contextlib.closing(writer):
            if writer.images:
                log.info("%d of %d images are in %s already", writer.images, len(items), folder)
            granted = writer.bytes
            for image in encode_images(model, items[writer.images :], plan, self._batch):
                writer.append(image)
                on_image(writer.images)
                if writer.bytes > granted:
                    granted = self._grant(folder, writer, len(items))
            writer.seal()

    def _grant(self, folder: Path, writer: FeatureWriter, images: int) -> int:
        """Makes room for the whole by the mean of what is there; how many bytes may be written before the next look.

        Raises:
            DataError: there is not enough room.
        """
        expected = int(writer.bytes / writer.images * images)
        more = expected - writer.bytes
        self._make_room(folder, expected, more)
        return max(writer.bytes + more // 2, writer.bytes + 1)

    def _make_room(self, folder: Path, whole: int, more: int) -> None:
        others = {path: folder_bytes(path) for path in self.root.glob("*/") if _is_features(path, folder)}
        for path in sorted(others, key=_last_use):
            if whole + sum(others.values()) <= self._most and more <= self._free():
                return
            if self._remove(path.name):
                log.info("%s made room for new features", path)
                del others[path]
        if whole + sum(others.values()) > self._most or more > self._free():
            raise DataError(
                f"the features of these images take about {_gib(whole)} GiB, {_gib(more)} of them still to be written; "
                f"expected room in {self.root}, which may hold {_gib(self._most)} GiB and has "
                f"{_gib(sum(others.values()))} in use by others, on a disk with {_gib(self._free())} GiB to spare; "
                "raise probe.cache_gib, name another probe.cache, or take fewer images by probe.max_train"
            )

    def _free(self) -> int:
        return max(0, shutil.disk_usage(self.root).free - RESERVE_BYTES)

    def _remove(self, key: str) -> bool:
        """Removes features that nobody uses; False if somebody does."""
        if key in self._used and not self._used[key].closed:
            return False
        with (self.root / f"{key}.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            (self.root / key / COMPLETE).unlink(missing_ok=True)  # first: a half of it is never read
            shutil.rmtree(self.root / key, ignore_errors=True)
        return True


def _is_features(path: Path, but: Path) -> bool:
    return path != but and (path / "key.json").is_file()


def _last_use(folder: Path) -> float:
    for name in (COMPLETE, "index.jsonl", "."):
        with contextlib.suppress(FileNotFoundError):
            return (folder / name).stat().st_mtime
    return 0.0


def _gib(count: int) -> str:
    return f"{count / 2**30:.3g}"


@contextlib.contextmanager
def _locked_alone(lock: BinaryIO, folder: Path) -> Iterator[None]:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("another process encodes %s; waiting for it", folder)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
