"""How frames are brought to the size that a model gets them in, and its flow back.

Legend: B batch, 3 RGB, 2 = (u, v), H W image.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mcjepa.evals.flow.settings import RESIZE_FORMS


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


def describe(resize: str) -> str:
    """The setting in words, for the card."""
    if resize == "none":
        return "not resized; the model pads inside"
    return f"resized for the model ({resize}, bilinear), its flow resized back and scaled"
