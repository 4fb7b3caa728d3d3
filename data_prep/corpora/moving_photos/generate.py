"""The moving-photos corpus: sequences with exact flow, occlusion and objects, made from real photos.

    ROOT/moving_photos.json              settings, photos, digests; the folder appears with it, complete
    ROOT/train/videos/00012.mp4          training sequences: h264, yuv420p
    ROOT/train/images/00012.png          squares of the training photos, for the content branch
    ROOT/heldout/00003/frame_0000.png    held-out sequences, from other photos, RGB
                      /flow_0000.flo     frame 0 to 1, px
                      /occluded_0000.png 255: the point is covered in frame 1 or has left it
                      /objects_0000.png  palette: 0 background, 1.. objects from back to front
                      /classes_0000.png  palette: index of the held-out photo, 255 at mixed edges

Everything follows from the settings and the photos: same seed, same bytes, whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import glob
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import cv2
import numpy as np

from mcjepa.data_prep.code import isolated_children
from mcjepa.data_prep.corpora.flow.files import write_flo
from mcjepa.data_prep.corpora.image_files import read_bytes, read_rgb, write_id_png, write_png
from mcjepa.data_prep.corpora.moving_photos.layered_motion import (
    ByteArray,
    RenderedSequence,
    cut_square,
    render_sequence,
)
from mcjepa.data_prep.corpora.moving_photos.sets import INDEX_NAME, VERSION, MovingPhotosIndex, read_index
from mcjepa.data_prep.corpora.samples import packaged_photos
from mcjepa.data_prep.corpora.trees import IMAGE_SUFFIXES, files_below
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.process import end_with_parent, usable_cores
from mcjepa.data_prep.settings import MovingPhotosConfig

PHOTO_SHORT_SIDE_PX = 512
PARTS = ("train", "heldout", "tile")
LEAST_PHOTOS = 4

Task = tuple[str, int]


def generate(
    config: MovingPhotosConfig,
    *,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> MovingPhotosIndex:
    """Make the folder `config.out`, or keep it when it is already complete with these settings.

    The folder is filled under another name and renamed at the end: an interrupted run leaves nothing
    that a rerun trips over. Each process fills a folder of its own; of several with one `out` the first one's is kept.

    Args:
        config: Settings; `config.photos` empty means the photos that ship in packages.
        workers: Processes; 0: one per core; 1: in this process.
        on_progress: Called with (sequences and tiles done, all of them).

    Raises:
        DataError: too few photos, or the folder holds something else.
    """
    photos, skipped = _readable_photos(config)
    train, heldout = split_photos([name for name, _ in photos], config)
    index = _describe(config, dict(photos), train, heldout, skipped)
    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        return _check_existing(out, index)
    with _partial_folder(out) as partial:
        _fill(config, partial, dict(photos), index, workers, on_progress)
        try:
            partial.rename(out)  # replaces an empty folder
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return _check_existing(out, index)  # another process was quicker
    return index


@contextlib.contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that no other process writes to; what killed ones have left there is removed."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*partial"):
        with contextlib.suppress(OSError), _locked(left):  # OSError: its process is at work
            shutil.rmtree(left, ignore_errors=True)
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    partial.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file system without locks: nobody gets one to remove it
            stack.enter_context(_locked(partial))
        yield partial


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process.

    Raises:
        OSError: another holds it, or it has none.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _fill(
    config: MovingPhotosConfig,
    partial: Path,
    photos: dict[str, Path],
    index: MovingPhotosIndex,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Write all of a moving-photos folder, its index last."""
    for folder in ("train/videos", "train/images", "heldout"):
        (partial / folder).mkdir(parents=True)
    train, heldout = (tuple(str(photos[n]) for n in part) for part in (index.train_photos, index.heldout_photos))
    maker = _Maker(config, str(partial), train, heldout)
    tasks = list(_tasks(config))
    for done, _ in enumerate(_run(maker, tasks, workers or usable_cores()), 1):
        if on_progress:
            on_progress(done, len(tasks))
    (partial / INDEX_NAME).write_text(json.dumps(dataclasses.asdict(index), indent=1, sort_keys=True) + "\n")


def split_photos(names: list[str], config: MovingPhotosConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split photo names into training and held-out ones by the seed, each part sorted.

    Raises:
        DataError: fewer photos than both parts need.
    """
    if len(names) < LEAST_PHOTOS:
        raise DataError(
            f"{len(names)} readable photos; expected at least {LEAST_PHOTOS} (to train on and to hold out); "
            "add some, or leave `photos` empty to use the 17 of the `samples` extra"
        )
    count = max(2, min(config.heldout_photos, -(-len(names) // 3)))
    order = np.random.default_rng([config.seed, len(names)]).permutation(len(names))
    heldout = {names[i] for i in order[:count]}
    return tuple(n for n in names if n not in heldout), tuple(n for n in names if n in heldout)


@dataclass(frozen=True)
class _Maker:
    """Makes one sequence or tile by its number; sent to the worker processes."""

    config: MovingPhotosConfig
    folder: str
    train_paths: tuple[str, ...]
    heldout_paths: tuple[str, ...]

    def __call__(self, task: Task) -> None:
        part, number = task
        state = np.random.SeedSequence([self.config.seed, PARTS.index(part), number]).generate_state(2)
        seed = int(state[0]) << 32 | int(state[1])
        folder = Path(self.folder)
        photos = load_photos(self.heldout_paths if part == "heldout" else self.train_paths)
        if part == "tile":
            rng = np.random.default_rng(seed)
            tile = cut_square(rng, photos[number % len(photos)], self.config.tile_px)
            write_png(folder / "train" / "images" / f"{number:05d}.png", tile)
            return
        sequence = render_sequence(photos, self.config, seed)
        if part == "train":
            path = folder / "train" / "videos" / f"{number:05d}.mp4"
            write_mp4(path, sequence.frames, self.config.fps_hz, self.config.crf)
        else:
            _write_heldout(folder / "heldout" / f"{number:05d}", sequence)


def _write_heldout(folder: Path, sequence: RenderedSequence) -> None:
    folder.mkdir()
    for t, frame in enumerate(sequence.frames):
        write_png(folder / f"frame_{t:04d}.png", frame)
        write_id_png(folder / f"objects_{t:04d}.png", sequence.objects[t])
        write_id_png(folder / f"classes_{t:04d}.png", sequence.classes[t])
    for t, flow in enumerate(sequence.flow):
        write_flo(folder / f"flow_{t:04d}.flo", flow)
        write_png(folder / f"occluded_{t:04d}.png", sequence.occluded[t].astype(np.uint8) * np.uint8(255))


def write_mp4(path: Path, frames: ByteArray, fps_hz: int, crf: int) -> None:
    """Encode RGB frames (T, H, W, 3) as h264 in yuv420p, the same bytes every time.

    One thread, and x264's plain C code: with its kernels for AVX-512 the bytes differ from run to run.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps_hz)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {
            "crf": str(crf),
            "preset": "fast",
            "threads": "1",
            "flags": "+bitexact",
            "x264-params": "asm=0",
        }
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(buffer.getvalue())


@lru_cache(maxsize=2)
def load_photos(paths: tuple[str, ...]) -> tuple[ByteArray, ...]:
    """Read photos as RGB (H, W, 3), the short side at most 512 px."""
    photos = []
    for path in paths:
        photo = read_rgb(Path(path))
        scale = PHOTO_SHORT_SIDE_PX / min(photo.shape[:2])
        if scale < 1:
            size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
            photo = np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)
        photos.append(photo)
    return tuple(photos)


def _tasks(config: MovingPhotosConfig) -> Iterator[Task]:
    for part, count in zip(PARTS, (config.sequences, config.heldout_sequences, config.tiles), strict=True):
        yield from ((part, number) for number in range(count))


def _run(maker: _Maker, tasks: list[Task], workers: int) -> Iterator[None]:
    """Make all tasks; nothing of it is left running when the caller stops."""
    if workers == 1:
        yield from map(maker, tasks)
        return
    # spawn: forking a process in which OpenCV or torch threads run can hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        with isolated_children():
            results = pool.map(maker, tasks, chunksize=4)  # starts the processes
        yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent_pid: int) -> None:
    end_with_parent(parent_pid)
    cv2.setNumThreads(1)


def _readable_photos(
    config: MovingPhotosConfig,
) -> tuple[list[tuple[str, Path]], tuple[tuple[str, str], ...]]:
    """Names and paths of at most `max_photos` photos, and those that cannot be read with the reason."""
    if config.photos:
        found = [(n, Path(root) / n) for root in config.photos for n in files_below(root, IMAGE_SUFFIXES)]
    else:
        found = [(path.name, path) for path in packaged_photos()]
    if len({name for name, _ in found}) < len(found):  # the same name in several folders
        found = [(f"{number:04d}/{name}", path) for number, (name, path) in enumerate(found)]
    if len(found) > config.max_photos:
        chosen = np.random.default_rng([config.seed, len(found)]).permutation(len(found))[: config.max_photos]
        found = [found[i] for i in sorted(chosen)]
    readable, skipped = [], []
    for name, path in found:
        try:
            read_rgb(path)
            readable.append((name, path))
        except DataError as error:
            skipped.append((name, str(error)))
    return readable, tuple(skipped)


def _describe(
    config: MovingPhotosConfig,
    photos: dict[str, Path],
    train: tuple[str, ...],
    heldout: tuple[str, ...],
    skipped: tuple[tuple[str, str], ...],
) -> MovingPhotosIndex:
    settings: dict[str, object] = {
        k: v for k, v in sorted(dataclasses.asdict(config).items()) if k not in ("out", "photos")
    }
    digests = {n: hashlib.sha256(read_bytes(photos[n])).hexdigest() for n in train + heldout}
    text = json.dumps([VERSION, settings, train, heldout, digests], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return MovingPhotosIndex(VERSION, digest, settings, train, heldout, digests, skipped)


def _check_existing(out: Path, wanted: MovingPhotosIndex) -> MovingPhotosIndex:
    existing = read_index(out)
    if existing.config_digest == wanted.config_digest:
        return existing
    differing = [k for k, v in wanted.settings.items() if existing.settings.get(k) != v]
    if existing.photo_sha256 != wanted.photo_sha256:
        differing.append("photos")
    raise DataError(
        f"{out} holds moving photos made with other settings ({', '.join(differing)} differ); "
        "expected an empty folder or the same settings; remove it or name another `out`"
    )
