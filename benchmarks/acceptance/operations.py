"""Operations on the device against references in fp64 that were computed on a CPU, values and gradients.

Inputs are numbers that bf16 and fp16 hold exactly, so one reference serves all types. A reference is the same function
with `Tensor.float` replaced by `Tensor.double`, for the correlation and the depthwise convolution the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.acceptance import Place, require
from mcjepa.model.correlation import correlate, correlate_loop
from mcjepa.model.encoder import DepthwiseConvolution
from mcjepa.model.layers.layer_norm import layer_norm
from mcjepa.model.losses.reconstruction import census_distance, ssim
from mcjepa.model.losses.variance_covariance import variance_covariance_loss
from mcjepa.model.losses.vicreg import vicreg_terms
from mcjepa.model.warp import warp

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
Inputs = Mapping[str, Tensor]


def _depthwise(x: Inputs) -> Tensor:
    module = DepthwiseConvolution(x["image"].shape[1]).to(x["image"])
    out: Tensor = torch.func.functional_call(module, {"weight": x["weight"], "bias": x["bias"]}, (x["image"],))
    return out


def _covariance(x: Inputs) -> Tensor:
    return torch.stack(variance_covariance_loss([x["left"], x["right"]], [0.01, 0.01], [0.04, 0.001]))


OPERATIONS: dict[str, Callable[[Inputs], Tensor]] = {
    "warp": lambda x: warp(x["left"], x["flow"]),
    "correlation": lambda x: correlate(x["left"], x["right"], 4),
    "layer_norm": lambda x: layer_norm(x["rows"], x["weight"], x["bias"], 1e-6),
    "depthwise": _depthwise,
    "census": lambda x: census_distance(x["image"], x["other"]),
    "ssim": lambda x: ssim(x["image"], x["other"]),
    "vicreg": lambda x: torch.stack(vicreg_terms(x["rows"], x["others"])),
    "covariance": _covariance,
}
DEFINITIONS: dict[str, Callable[[Inputs], Tensor]] = {
    "correlation": lambda x: correlate_loop(x["left"], x["right"], 4),
    "depthwise": lambda x: F.conv2d(x["image"], x["weight"], x["bias"], padding=3, groups=len(x["weight"])),
}
TYPES = {  # photometric losses are computed in fp32 alone, fp16 matters where sums overflow
    "correlation": (torch.float32, torch.bfloat16, torch.float16),
    "census": (torch.float32,),
    "ssim": (torch.float32,),
}


def _numbers(shape: tuple[int, ...], low: int, high: int, unit: float, random: torch.Generator) -> Tensor:
    """Whole multiples of `unit` within [low, high)."""
    return torch.randint(low, high, shape, generator=random) * unit


def make_inputs() -> dict[str, dict[str, Tensor]]:
    """The inputs of every operation, fp32; at most 7 bits, no flow that ends on a cell's centre."""
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int, low: int = -64, high: int = 64, unit: float = 1 / 32) -> Tensor:
        return _numbers(shape, low, high, unit, random)

    maps = {"left": numbers(2, 24, 12, 20), "right": numbers(2, 24, 12, 20)}
    large = {name: numbers(1, 768, 6, 10, low=64, high=128, unit=1 / 8) for name in ("left", "right")}
    flow = numbers(2, 2, 12, 20, low=-2, high=2, unit=1.0) + numbers(2, 2, 12, 20, low=16, high=48, unit=1 / 64)
    images = {name: numbers(2, 3, 24, 32, low=1, high=128, unit=1 / 128) for name in ("image", "other")}
    rows = {"rows": numbers(48, 256), "others": numbers(48, 256)}
    return {
        "warp": {"left": maps["left"], "flow": flow},
        "correlation": large,
        "layer_norm": {"rows": rows["rows"], "weight": numbers(256), "bias": numbers(256)},
        "depthwise": {"image": numbers(2, 16, 14, 14), "weight": numbers(16, 1, 7, 7), "bias": numbers(16)},
        "census": images,
        "ssim": images,
        "vicreg": rows,
        "covariance": maps,
    }


def compute(function: Callable[[Inputs], Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """The output and, weighted by a fixed wave, the gradient of every input."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    out = function(leaves)
    wave = torch.arange(out.numel(), device=out.device, dtype=torch.float64).cos().bfloat16().view(out.shape)
    (out * wave.to(out.dtype)).sum(dtype=torch.promote_types(out.dtype, torch.float32)).backward()
    return {"out": out.detach(), **{f"d_{name}": x.grad for name, x in leaves.items() if x.grad is not None}}


def write_references(file: Path) -> None:
    """Inputs and their references in fp64, as one safetensors file."""
    kept: dict[str, Tensor] = {}
    for name, inputs in make_inputs().items():
        exact = {key: x.double() for key, x in inputs.items()}
        with mock.patch.object(Tensor, "float", Tensor.double):
            found = compute(DEFINITIONS.get(name, OPERATIONS[name]), exact)
        kept |= {f"{name}/in/{key}": x.clone() for key, x in inputs.items()}
        kept |= {f"{name}/{key}": x.contiguous() for key, x in found.items()}
    save_file(kept, file)


def _apart(found: Tensor, expected: Tensor) -> float:
    """Relative distance; infinite where a number is not finite."""
    gap = (found.double().cpu() - expected).norm() / expected.norm()
    return float(gap) if bool(gap.isfinite()) else float("inf")


def operations(place: Place) -> dict[str, Any]:
    """Every operation in every type: the worst relative distance of its output and gradients."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    kept = load_file(place.prepared / "references.safetensors")
    figures: dict[str, float] = {}
    wrong = []
    for name, function in OPERATIONS.items():
        given = {k.rpartition("/")[2]: x for k, x in kept.items() if k.startswith(f"{name}/in/")}
        for dtype in TYPES.get(name, (torch.float32, torch.bfloat16)):
            label = f"{name}_{str(dtype).removeprefix('torch.')}"
            found = compute(function, {key: x.to(place.device, dtype) for key, x in given.items()})
            figures[label] = float(f"{max(_apart(x, kept[f'{name}/{key}']) for key, x in found.items()):.1e}")
            if not figures[label] <= BOUNDS[dtype]:
                wrong.append(f"{label} {figures[label]}, expected at most {BOUNDS[dtype]}")
    require(not wrong, "; ".join(wrong))
    return figures
