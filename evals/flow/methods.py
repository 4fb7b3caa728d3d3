"""What is scored on a flow set, behind one signature: a model, flow that was computed before, classical baselines.

The baselines need no weights: they take grey images at full resolution and are the bars that a model has to beat.
Legend: B batch, 3 RGB, 2 = (u, v), H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.data_prep.corpora.items import FlowPair
from mcjepa.data_prep.errors import DataError
from mcjepa.evals.flow.estimates import EstimateFolder
from mcjepa.evals.flow.settings import BASELINES, RESIZE_FORMS
from mcjepa.evals.models import EvalModel, LoadedModel, image_tensor

Flow = NDArray[np.float32]

MODEL = "model"
"""Name of what is scored, beside the baselines' names."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a set is scored for, and what its card says of it: a model, or a folder of estimates."""

    name: str
    """For people."""

    model: EvalModel | None = None
    """The model; None where estimates are read."""

    estimates: Path | None = None
    """Folder of the estimates."""

    digest: str = ""
    """sha256 of the weights; empty if they are no file."""

    lineage: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights come from."""

    @staticmethod
    def of(loaded: LoadedModel) -> Method:
        """A model as the other evaluations know it."""
        return Method(name=loaded.name, model=loaded.model, digest=loaded.digest, lineage=loaded.lineage)


@dataclass(frozen=True, kw_only=True)
class Frames:
    """A pair's frames as read, and as the model takes them."""

    pair: FlowPair
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    tensors: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, kw_only=True)
class FlowMethods:
    """The scored method and the baselines of one set."""

    model: EvalModel | None
    estimates: EstimateFolder | None
    baselines: Mapping[str, FlowBaseline]
    resize: str

    @property
    def names(self) -> list[str]:
        """Names in the order of the columns: the scored method first, where there is one."""
        first = [MODEL] if self.model or self.estimates else []
        return [*first, *self.baselines]

    @property
    def lead(self) -> str:
        """The method that worst pairs and pictures go by: the scored one, else the strongest baseline there is."""
        strongest = ("dis-medium", "dis-fast", "dis-ultrafast", "farneback")
        return next(name for name in (MODEL, *strongest, *self.names) if name in self.names)

    def read_frames(self, pair: FlowPair) -> Frames:
        """Reads a pair, and resizes it for the model."""
        images = pair.read_frames()
        if self.model is None:
            return Frames(pair=pair, images=images, tensors=None)
        size = model_size(self.resize, images[0].shape[:2])
        first, second = (resize_frame(image_tensor(image), size) for image in images)
        return Frames(pair=pair, images=images, tensors=(first, second))

    def run_model(self, frames: Frames) -> Flow | None:
        """The model's flow at the frames' own size, (H, W, 2) px; None where no model is scored."""
        if self.model is None or frames.tensors is None:
            return None
        flow_12HW = resize_flow(self.model.flow(*frames.tensors), frames.images[0].shape[:2])
        return np.asarray(flow_12HW[0].permute(1, 2, 0).numpy(), np.float32)

    def others(self, frames: Frames, valid_HW: NDArray[np.bool_] | None = None) -> dict[str, Callable[[], Flow]]:
        """The estimate read from its file and the baselines, each made when it is called.

        Args:
            frames: the pair.
            valid_HW: where an estimate must be known.
        """
        calls: dict[str, Callable[[], Flow]] = {}
        estimates = self.estimates
        if estimates is not None:
            calls[MODEL] = lambda: _known(estimates.read(frames.pair), frames, valid_HW)
        for name, method in self.baselines.items():
            calls[name] = lambda method=method: method(*frames.images)  # type: ignore[misc]
        return calls


def flow_methods(
    method: Method | None, baselines: Sequence[str], resize: str = "none", estimates: EstimateFolder | None = None
) -> FlowMethods:
    """The methods of a set.

    Args:
        method: the model, or whose estimates they are; None: baselines only.
        baselines: their names.
        resize: `FlowEvalConfig.resize`, for the model.
        estimates: the method's estimates of the set.

    Raises:
        ValueError: there is no such baseline, or nothing to score at all.
    """
    chosen = {name: flow_baseline(name) for name in baselines}
    if method is None and not chosen:
        raise ValueError("no weights, no estimates and no baselines; expected something to score; name one")
    return FlowMethods(model=method.model if method else None, estimates=estimates, baselines=chosen, resize=resize)


def model_size(resize: str, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in px that frames of that size are resized to under a setting of `FlowEvalConfig.resize`.

    >>> model_size("none", (436, 1024)), model_size("multiple-of-64", (436, 1024)), model_size("384x832", (436, 1024))
    ((436, 1024), (448, 1024), (384, 832))
    """
    form = RESIZE_FORMS.fullmatch(resize)
    assert form is not None  # FlowEvalConfig checks it
    if form["multiple"]:
        multiple = int(form["multiple"])
        height, width = (-(-side // multiple) * multiple for side in size)
        return height, width
    return (int(form["height"]), int(form["width"])) if form["height"] else size


def resize_frame(frame_B3HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, pixel areas aligned; unchanged where it has that size."""
    if tuple(frame_B3HW.shape[-2:]) == size:
        return frame_B3HW
    return F.interpolate(frame_B3HW, size, mode="bilinear", align_corners=False)


def resize_flow(flow_B2HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, with u scaled as the width and v as the height; unchanged where it has that size."""
    height, width = flow_B2HW.shape[-2:]
    if (height, width) == size:
        return flow_B2HW
    factors = flow_B2HW.new_tensor([size[1] / width, size[0] / height])[:, None, None]
    return F.interpolate(flow_B2HW, size, mode="bilinear", align_corners=False) * factors


def describe_resizing(resize: str) -> str:
    """The setting in words, for the card."""
    if resize == "none":
        return "not resized; the model pads inside"
    return f"resized for the model ({resize}, bilinear), its flow resized back and scaled"


def _known(flow_HW2: Flow, frames: Frames, valid_HW: NDArray[np.bool_] | None) -> Flow:
    """The estimate, checked: it must have the frames' size and be known wherever it is scored."""
    size = frames.images[0].shape[:2]
    if flow_HW2.shape[:2] != size:
        raise DataError(f"estimate of {_text(flow_HW2.shape)}, frames of {_text(size)}; expected one size; replace it")
    unknown = np.isnan(flow_HW2).any(-1)
    count = int(np.count_nonzero(unknown if valid_HW is None else unknown & valid_HW))
    if count:
        raise DataError(f"estimate unknown at {count} pixels that count; expected a dense one; fill its gaps")
    return flow_HW2


def _text(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]} px"


FlowBaseline = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
"""Two RGB frames (H, W, 3) uint8 to the flow (H, W, 2) float32 from the first to the second, px, (right,
down)."""

_DIS_PRESETS = {
    "dis-ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "dis-fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "dis-medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}

FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 7,
    "poly_sigma": 1.5,
    "flags": 0,
}
"""OpenCV's documented settings, with the 7-pixel neighbourhood and its recommended sigma of 1.5."""


def flow_baseline(name: str) -> FlowBaseline:
    """The method of that name; each call of the result is independent of the ones before.

    Raises:
        ValueError: there is no such baseline.
    """
    if name == "zero":
        return _zero_flow
    if name == "farneback":
        return _farneback
    if name in _DIS_PRESETS:
        preset = _DIS_PRESETS[name]
        return lambda frame0, frame1: _dis(frame0, frame1, preset)
    raise ValueError(f"no flow baseline named {name!r}; expected one of {list(BASELINES)}; change flow.baselines")


def _grey(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY), np.uint8)


def _zero_flow(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.zeros((*frame0.shape[:2], 2), np.float32)


def _farneback(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8]) -> NDArray[np.float32]:
    flow = cv2.calcOpticalFlowFarneback(_grey(frame0), _grey(frame1), None, **FARNEBACK)  # type: ignore[call-overload]
    return np.asarray(flow, np.float32)


def _dis(frame0: NDArray[np.uint8], frame1: NDArray[np.uint8], preset: int) -> NDArray[np.float32]:
    # A given flow, even of zeros, would be taken as the start; and a fresh object keeps pairs independent.
    flow = cv2.DISOpticalFlow.create(preset).calc(_grey(frame0), _grey(frame1), None)  # type: ignore[call-overload]
    return np.asarray(flow, np.float32)
