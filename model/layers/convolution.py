"""3x3 convolutions in the quickest form for their size: direct, as one matrix product, or Winograd's.

On CPUs oneDNN's direct form lays the weight out anew in every call, which takes longer than its products where the map
is small and the weight large; and it needs four times Winograd's multiplications where both are large. In bf16 it stays
direct: twice as fast there, and Winograd's form would have to be computed in fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcjepa.model.layers.winograd import convolve_winograd, winograd_filters

_OUTWEIGHED = 6
"""How many times as many numbers the weight has as input and output together, from where one product is quicker."""
_WINOGRAD_CHANNELS, _WINOGRAD_TILES = 64, 24
"""Channels in and out, and tiles, from which Winograd's form is quicker."""

_KEPT: ContextVar[dict[tuple[object, ...], Tensor] | None] = ContextVar("forms of weights", default=None)


@contextlib.contextmanager
def weights_kept() -> Iterator[None]:
    """Within it a weight is brought into another form once for all calls; it must not change meanwhile."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def _form(key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
    """A form of a weight, kept where `weights_kept`."""
    kept = _KEPT.get()
    if kept is None:
        return make()
    if key not in kept:
        kept[key] = make()
    return kept[key]


def _interleaved(x: Tensor, step: int) -> Tensor:
    """Every `step`-th row and column as a map of its own, (B, C, h, w) to (B step^2, C, h / step, w / step)."""
    batch, channels, height, width = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(batch, height // step, step, width // step, step, channels)
    parts = parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, height // step, width // step, channels)
    return parts.permute(0, 3, 1, 2)


def _joined(parts: Tensor, step: int) -> Tensor:
    """The map of which these are every `step`-th row and column."""
    _, channels, height, width = parts.shape
    x = parts.permute(0, 2, 3, 1).reshape(-1, step, step, height, width, channels)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, step * height, step * width, channels).permute(0, 3, 1, 2)


def _suits_winograd(x: Tensor, weight: Tensor, dilation: int) -> bool:
    """Whether Winograd's form is quicker: many channels, many tiles, few cells of them beyond the map."""
    height, width = x.shape[-2:]
    if weight.dtype != torch.float32 or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if min(weight.shape[:2]) < _WINOGRAD_CHANNELS or height % dilation or width % dilation:
        return False
    tiles = len(x) * dilation**2 * -(-height // (4 * dilation)) * -(-width // (4 * dilation))
    return tiles >= _WINOGRAD_TILES and 16 * tiles <= 1.4 * len(x) * height * width


def _by_winograd(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Winograd's form; with dilation of each of the maps that lie between each other."""
    filters = _form(("filters", id(weight)), lambda: winograd_filters(weight))
    if dilation == 1:
        return convolve_winograd(x, filters, bias)
    return _joined(convolve_winograd(_interleaved(x, dilation), filters, bias), dilation)


def _as_product(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, taps: tuple[slice, slice]) -> Tensor:
    """The windows of all positions times the weight, which is used as it lies in memory."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    key = ("rows", id(weight), dtype, *(side.start for side in taps))
    rows = _form(key, lambda: weight[..., *taps].flatten(1).to(dtype))
    size = (taps[0].stop - taps[0].start, taps[1].stop - taps[1].start)
    reach = (dilation * (size[0] // 2), dilation * (size[1] // 2))
    windows = F.unfold(x, size, padding=reach, dilation=dilation).transpose(1, 2)
    return F.linear(windows, rows, bias).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def convolve_3x3(x_BChw: Tensor, weight_OC33: Tensor, bias_O: Tensor | None, dilation: int = 1) -> Tensor:
    """3x3 convolution with zeros around the map, of stride 1.

    Taps that reach beyond the map from everywhere on it only ever meet the padding: they are left out.

    Args:
        x_BChw: the input.
        weight_OC33: the weight.
        bias_O: the bias, or None.
        dilation: cells from tap to tap.

    Returns:
        (B, O, h, w).
    """
    up, left = (int(side > dilation) for side in x_BChw.shape[-2:])
    taps = slice(1 - up, 2 + up), slice(1 - left, 2 + left)
    if x_BChw.device.type == "cpu" and type(x_BChw) is Tensor and len(x_BChw) and not torch.compiler.is_compiling():
        cells, weights = x_BChw[:, 0].numel(), weight_OC33[..., *taps].numel()
        if weights > _OUTWEIGHED * cells * sum(weight_OC33.shape[:2]):
            return _as_product(x_BChw, weight_OC33, bias_O, dilation, taps)
        if up and left and _suits_winograd(x_BChw, weight_OC33, dilation):
            return _by_winograd(x_BChw, weight_OC33, bias_O, dilation)
    weight = weight_OC33 if up and left else weight_OC33[..., *taps]
    return F.conv2d(x_BChw, weight, bias_O, padding=(dilation * up, dilation * left), dilation=dilation)


class Convolution3x3(nn.Conv2d):
    """3x3 convolution of stride 1; a module that computes itself, as ZeRO-3 fetches parameters by module calls."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """(B, C, h, w) to (B, O, h, w)."""
        return convolve_3x3(x_BChw, self.weight, self.bias, self.dilation[0])
