"""One clip to its files: flow of every pair of neighbouring frames, features of every frame.

The clip is read twice: a few frames to fix the colours, then all that something is missing of, in order. Memory holds
a batch of frames, whatever the clip's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mcjepa.data_prep.corpora.flow.files import FloatArray, read_flo
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.infer.clip import Clip, Frame, read_alike
from mcjepa.evals.infer.products import ClipFolder, Palette, feature_basis, longest_flow
from mcjepa.evals.infer.settings import InferConfig
from mcjepa.evals.infer.tiling import tiled_features, tiled_flow
from mcjepa.evals.models import EvalModel, image_tensor
from mcjepa.evals.progress import evenly_spaced
from mcjepa.evals.video_writer import VideoWriter

SAMPLED = 4
OnFrame = Callable[[int, int], None]
"""`fn(done, total)`."""


@dataclass(frozen=True)
class ClipResult:
    """What became of one clip."""

    folder: Path
    written: list[Path] = field(default_factory=list)
    kept: int = 0
    """Files that an earlier run had written."""
    flow_px: float = 0.0
    """Length of flow with full colour, px; 0 if none was drawn."""


def infer_clip(
    model: EvalModel,
    identity: str,
    clip: Clip,
    config: InferConfig,
    out: Path,
    overwrite: bool = False,
    on_frame: OnFrame | None = None,
) -> ClipResult:
    """Writes the results of one clip; existing ones are kept.

    Args:
        model: gives flow and features.
        identity: of its weights and config (`Weights.identity`): results of others are not continued.
        clip: the frames.
        config: what is written.
        out: folder above the clip's.
        overwrite: write everything anew.
        on_frame: progress.

    Returns:
        What was written.

    Raises:
        DataError: too few frames, unreadable frames, or a folder with other results.
    """
    least = 1 if set(config.write) == {"features"} else 2
    if len(clip.frames) < least:
        raise DataError(f"{clip.name} has {len(clip.frames)} frame; expected {least} or more; flow needs a pair")
    folder = ClipFolder(clip, out, config)
    folder.prepare(identity, overwrite)
    work = _missing(clip, folder, overwrite)
    if not work.files and not work.movies:
        return ClipResult(folder.folder, kept=work.kept)
    run = _ClipRun(model, clip, config, folder, work, overwrite)
    return run.write(on_frame)


@dataclass(frozen=True)
class _Work:
    """Files that are to be written: by frame, and movies."""

    files: dict[int, dict[str, Path]]
    movies: dict[str, Path]
    kept: int


def _missing(clip: Clip, folder: ClipFolder, overwrite: bool) -> _Work:
    kept = 0
    files: dict[int, dict[str, Path]] = {}
    for index in range(len(clip.frames)):
        wanted = folder.frame_files(index)
        missing = {kind: path for kind, path in wanted.items() if overwrite or not path.is_file()}
        kept += len(wanted) - len(missing)
        if missing:
            files[index] = missing
    movies = folder.movies()
    absent = {kind: path for kind, path in movies.items() if overwrite or not path.is_file()}
    return _Work(files, absent, kept + len(movies) - len(absent))


class _ClipRun:
    """The computing of one clip."""

    def __init__(
        self, model: EvalModel, clip: Clip, config: InferConfig, folder: ClipFolder, work: _Work, overwrite: bool
    ) -> None:
        self._model, self._clip, self._config, self._folder, self._work = model, clip, config, folder, work
        self._overwrite = overwrite
        self._flows: dict[int, FloatArray] = {}
        """Flows of the pairs that fixed the colours."""
        self._draws_features = "features" in work.movies or any("features" in each for each in work.files.values())
        self._palette = self._fix_colours()

    def write(self, on_frame: OnFrame | None) -> ClipResult:
        """Writes all that is missing."""
        result = ClipResult(self._folder.folder, kept=self._work.kept, flow_px=self._palette.flow_px)
        steps = self._frames_to_do()
        with ExitStack() as stack:
            rate = self._clip.fps_hz
            movies = {kind: stack.enter_context(VideoWriter(path, rate)) for kind, path in self._work.movies.items()}
            for done, (index, frame, flow) in enumerate(self._computed(steps), start=1):
                self._write_frame(index, frame, flow, movies, result)
                if on_frame:
                    on_frame(done, len(steps))
        result.written.extend(self._work.movies.values())
        return result

    def _frames_to_do(self) -> list[int]:
        """Frames of which something is to be written, in order."""
        return list(range(len(self._clip.frames))) if self._work.movies else sorted(self._work.files)

    def _write_frame(
        self, index: int, frame: Frame, flow: FloatArray | None, movies: dict[str, VideoWriter], result: ClipResult
    ) -> None:
        size = (frame.shape[0], frame.shape[1])
        files = self._work.files.get(index, {})
        picture = None
        if self._palette.features and ("features" in files or "features" in movies):
            picture = self._palette.features.picture(self._features(frame), size)
        for kind, path in files.items():
            self._folder.write_frame(kind, path, flow, picture, self._palette)
            result.written.append(path)
        if "video" in movies and flow is not None:
            movies["video"].write(np.concatenate([frame, self._palette.flow(flow)], axis=1))
        if "features" in movies and picture is not None:
            movies["features"].write(np.concatenate([frame, picture], axis=1))

    def _computed(self, steps: list[int]) -> Iterator[tuple[int, Frame, FloatArray | None]]:
        """Frames with the flow to their successors (None where none is needed), a batch at a time."""
        wanted = [index for index in steps if self._needs_flow(index)]
        numbers = sorted({*steps, *(index + 1 for index in wanted)})
        asked, needs = set(steps), set(wanted)
        waiting: list[tuple[int, Frame]] = []
        for number, frame in zip(numbers, read_alike(self._clip, numbers), strict=True):
            waiting.append((number, frame))
            if len(waiting) > self._config.batch:
                yield from self._flows_of(waiting, asked, needs)
                waiting = waiting[-1:]
        yield from self._flows_of(waiting, asked, needs, last=True)

    def _flows_of(
        self, waiting: list[tuple[int, Frame]], asked: set[int], needs: set[int], last: bool = False
    ) -> Iterator[tuple[int, Frame, FloatArray | None]]:
        """The waiting frames with their flows; the newest one waits on, as it begins the next pair, unless `last`."""
        frames = dict(waiting)
        ready = [index for index, _ in (waiting if last else waiting[:-1])]
        flows = {index: self._known_flow(index) for index in ready if index in needs}
        unknown = [index for index, flow in flows.items() if flow is None]
        if unknown:
            firsts, seconds = ([frames[index + step] for index in unknown] for step in (0, 1))
            flows |= dict(zip(unknown, self._estimate(firsts, seconds), strict=True))
        for index in ready:
            if index in asked:
                yield index, frames[index], flows.get(index)

    def _needs_flow(self, index: int) -> bool:
        drawn = "video" in self._work.movies and index < len(self._clip.frames) - 1
        return drawn or bool(set(self._work.files.get(index, {})) - {"features"})

    def _known_flow(self, index: int) -> FloatArray | None:
        """A flow that was computed before: in this run, or as an earlier run's .flo file."""
        if index in self._flows:
            return self._flows.pop(index)
        path = self._folder.frame_files(index).get("flo")
        return read_flo(path) if path and not self._overwrite and path.is_file() else None

    def _estimate(self, firsts: list[Frame], seconds: list[Frame]) -> list[FloatArray]:
        frames = (torch.cat([image_tensor(frame) for frame in each]) for each in (firsts, seconds))
        first, second = frames
        flow_B2HW = tiled_flow(self._model, (first, second), self._config.tile_px, self._config.overlap_px)
        return [flow.permute(1, 2, 0).numpy() for flow in flow_B2HW]

    def _features(self, frame: Frame) -> NDArray[np.float32]:
        config = self._config
        return tiled_features(self._model, image_tensor(frame), config.stride, config.tile_px, config.overlap_px)[
            0
        ].numpy()

    def _fix_colours(self) -> Palette:
        """Looks at a few frames and pairs of the whole clip, whatever is missing: a rerun has the same colours."""
        pairs = evenly_spaced(range(len(self._clip.frames) - 1), SAMPLED) if self._colours_flow() else []
        shown = evenly_spaced(range(len(self._clip.frames)), SAMPLED) if self._draws_features else []
        numbers = sorted({*shown, *pairs, *(index + 1 for index in pairs)})
        maps, before = [], None
        for number, frame in zip(numbers, read_alike(self._clip, numbers), strict=True):
            if number in shown:
                maps.append(self._features(frame))
            if number - 1 in pairs and before is not None:
                known = self._known_flow(number - 1)
                self._flows[number - 1] = known if known is not None else self._estimate([before], [frame])[0]
            before = frame
        scale = longest_flow(list(self._flows.values())) if pairs else self._config.max_flow_px
        return Palette(scale, feature_basis(maps) if maps else None)

    def _colours_flow(self) -> bool:
        if self._config.max_flow_px:
            return False
        return "video" in self._work.movies or any("colour" in files for files in self._work.files.values())
