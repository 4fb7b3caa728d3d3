"""Archives for the test servers of flow benchmarks: written, read again and checked before they get their name.

* sintel-test: clean/SCENE/frame0001.flo and final/…, .flo, as the benchmark's bundler takes them (its README): unpack
  the archive and run `bundler clean final OUT.lzma`, whose output is what the server takes.
* kitti2012-test: 000000_10.png to 000194_10.png in the archive's root; kitti2015-test: flow/000000_10.png to
  flow/000199_10.png. 16-bit PNG, every pixel valid (the devkits' readmes).
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mcjepa.data_prep.corpora.flow.files import (
    FloatArray,
    clamp_to_kitti,
    decode_flo,
    decode_kitti_png,
    encode_flo,
    encode_kitti_png,
)
from mcjepa.data_prep.corpora.flow.scans import TEST_PAIRS
from mcjepa.data_prep.corpora.image_files import picture_size
from mcjepa.data_prep.corpora.items import FlowPair
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import explained_disk_errors
from mcjepa.evals.flow.methods import MODEL, Flow, FlowMethods, Frames
from mcjepa.evals.flow.overlap import Failure, Stages, run_overlapped
from mcjepa.evals.progress import EvalEvent, OnEvent, silent

OLDEST_TIME = (1980, 1, 1, 0, 0, 0)
"""Of every member, so that equal flows give equal bytes."""

MEMBER_NAMES: dict[str, Callable[[str], str]] = {
    "sintel-test": lambda name: f"{name.replace('/frame_', '/frame')}.flo",
    "kitti2012-test": lambda name: f"{name}_10.png",
    "kitti2015-test": lambda name: f"flow/{name}_10.png",
}
"""Test set to the name of a pair's file in the archive."""


def require_whole(set_name: str, pairs: Sequence[FlowPair]) -> None:
    """Refuses a test folder that has not all of the benchmark's pairs.

    Raises:
        DataError: saying how many there are.
    """
    expected = TEST_PAIRS[set_name]
    if len(pairs) != expected:
        raise DataError(
            f"{set_name} has {len(pairs)} pairs here; the server expects {expected}; complete the test set first"
        )


def write_submission(
    path: Path, set_name: str, pairs: Sequence[FlowPair], methods: FlowMethods, workers: int, on_event: OnEvent = silent
) -> dict[str, int]:
    """Estimates every pair's flow, writes the archive beside its place, checks it and gives it its name.

    Args:
        path: the archive; replaced if it is there.
        set_name: a key of MEMBER_NAMES.
        pairs: the whole test set.
        methods: what estimates: a model, or estimates computed before.
        workers: see `run_overlapped`.
        on_event: progress, phases `pairs` and `check`.

    Returns:
        Pairs with flow beyond KITTI's format, and how many of their pixels were cut to it, as the devkit does.

    Raises:
        DataError: a pair is missing, has no usable flow, or the written archive is not what the server expects.
    """
    require_whole(set_name, pairs)
    with explained_disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            clamped = _write_members(partial, set_name, pairs, methods, workers, on_event)
            check_submission(partial, set_name, pairs, on_event)
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return clamped


def _write_members(
    path: Path, set_name: str, pairs: Sequence[FlowPair], methods: FlowMethods, workers: int, on_event: OnEvent
) -> dict[str, int]:
    clamped: dict[str, int] = {}
    stages: Stages[FlowPair, Frames, tuple[Frames, Flow | None], tuple[bytes, int]] = Stages(
        load=methods.read_frames,
        compute=lambda frames: (frames, methods.run_model(frames)),
        finish=lambda done: _encode(set_name, done[1] if done[1] is not None else methods.others(done[0])[MODEL]()),
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        contents = run_overlapped(pairs, stages, workers)
        for done, (pair, content) in enumerate(zip(pairs, contents, strict=True), 1):
            if isinstance(content, Failure):
                raise DataError(f"no archive was written: {pair.name}: {content.reason}")
            data, cut = content
            if cut:
                clamped[pair.name] = cut
            member = zipfile.ZipInfo(MEMBER_NAMES[set_name](pair.name), OLDEST_TIME)
            member.external_attr = 0o644 << 16
            archive.writestr(member, data)
            on_event(EvalEvent(score=f"submission/{set_name}", phase="pairs", done=done, total=len(pairs)))
    return clamped


def _encode(set_name: str, flow_HW2: Flow) -> tuple[bytes, int]:
    """The file, and how many pixels were cut to what its format can say."""
    if not np.isfinite(flow_HW2).all():
        raise DataError("the estimated flow is not finite everywhere; expected numbers; look at the model's run")
    if set_name == "sintel-test":
        return encode_flo(flow_HW2), 0
    cut_HW2, count = clamp_to_kitti(flow_HW2)
    return encode_kitti_png(cut_HW2, np.ones(flow_HW2.shape[:2], bool)), count


def check_submission(path: Path, set_name: str, pairs: Sequence[FlowPair], on_event: OnEvent = silent) -> None:
    """Reads an archive as the server would: all names and no other, sizes of the frames, types, finite, dense.

    Raises:
        DataError: naming the first thing that is wrong.
    """
    require_whole(set_name, pairs)
    wanted = {MEMBER_NAMES[set_name](pair.name): pair for pair in pairs}
    try:
        with zipfile.ZipFile(path) as archive:
            _check_names(path, [entry.filename for entry in archive.infolist() if not entry.is_dir()], set(wanted))
            for done, (name, pair) in enumerate(wanted.items(), 1):
                _check_member(f"{path}: {name}", archive.read(name), pair)
                on_event(EvalEvent(score=f"submission/{set_name}", phase="check", done=done, total=len(wanted)))
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is no readable zip archive ({error}); expected a submission; write it again"
        ) from error


def _check_names(path: Path, found: Sequence[str], wanted: set[str]) -> None:
    lacking, extra = sorted(wanted - set(found)), sorted(set(found) - wanted)
    twice = sorted({name for name in found if found.count(name) > 1}) if len(found) > len(set(found)) else []
    for names, what in ((lacking, "lacks"), (extra, "has too much:"), (twice, "has twice:")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DataError(f"{path} {what} {names[0]}{more}; expected {len(wanted)} files; write it again")


def _check_member(place: str, content: bytes, pair: FlowPair) -> None:
    flow: FloatArray
    if place.endswith(".flo"):
        flow, known = decode_flo(content, place), None
    else:
        flow, known = decode_kitti_png(content, place)
    width, height = picture_size(pair.frame0)
    if flow.shape[:2] != (height, width):
        raise DataError(
            f"{place} is {flow.shape[1]}x{flow.shape[0]} px; expected the frame's {width}x{height}; write it again"
        )
    if not np.isfinite(flow).all() or (known is not None and not known.all()):
        raise DataError(f"{place} has pixels without a finite value; expected a dense flow; write it again")
