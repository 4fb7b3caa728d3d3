"""The whole model on the device against a CPU, and whether its forward and backward pass wait for the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.acceptance import Place, need_gpu, require, synchronize
from mcjepa.model.config import EncoderConfig, ExpanderConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA, TERMS

TERM_BOUNDS = {"fp32": 1e-4, "bf16": 2e-2}
COSINE_BOUNDS = {"fp32": 0.9999, "bf16": 0.99}
Batch = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def tiny() -> MCJEPA:
    """ConvNeXt-T and the paper's estimator with a narrower expander and nothing random.

    Flow that starts at zero ends on the cells' centres, where its gradient jumps; so it starts elsewhere.
    """
    torch.manual_seed(0)
    encoder, expander = replace(EncoderConfig(), drop_path=0.0), ExpanderConfig(widths=(1024, 1024, 1024))
    model = MCJEPA(ModelConfig(encoder=encoder, expander=expander)).train()
    with torch.no_grad():
        for parameter in model.flow_estimator.residual.context[-1].parameters():
            parameter.normal_(std=0.02)
    return model


def batch(pairs: int, views: int, size: tuple[int, int], side: int) -> Batch:
    """Smooth random frames, the second moved by 2 px, and views."""
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(pairs, 3, size[0] // 8, size[1] // 8, generator=random)
    first = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return (first, first.roll((1, 2), (2, 3))), torch.rand(2, views, 3, side, side, generator=random).unbind(0)


def _moved(given: Batch, device: torch.device) -> Any:
    return tuple(tuple(images.to(device) for images in part) for part in given)


def terms_and_gradient(model: MCJEPA, given: Batch, *, low: bool) -> tuple[dict[str, float], Tensor]:
    """Every term and the gradient of all parameters, on the CPU in fp64."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        out = model(*_moved(given, device), dict.fromkeys(TERMS, 1.0))
    out.loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {name: float(term) for name, term in out.terms.items()}, gradient.cpu()


def model(place: Place) -> dict[str, Any]:
    """Terms and gradients in fp32 and bf16 against fp32 on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    given = batch(1, 4, (128, 192), 64)
    expected, exact = terms_and_gradient(tiny(), given, low=False)
    figures: dict[str, Any] = {}
    for kind, bound in TERM_BOUNDS.items():
        found, gradient = terms_and_gradient(tiny().to(place.device), given, low=kind == "bf16")
        apart = {name: abs(found[name] - value) / max(abs(value), 1e-3) for name, value in expected.items()}
        worst = max(apart, key=lambda name: apart[name])
        cosine = float(torch.nn.functional.cosine_similarity(gradient.double(), exact.double(), dim=0))
        figures |= {f"{kind}_terms": float(f"{apart[worst]:.1e}"), f"{kind}_worst": worst}
        figures |= {f"{kind}_cosine": round(cosine, 6)}
        require(apart[worst] <= bound and cosine > COSINE_BOUNDS[kind], f"{kind}: {figures}")
    return figures


def no_waiting(place: Place) -> dict[str, Any]:
    """Forward and backward pass with every wait for the device an error."""
    need_gpu(place, "a CPU waits for nothing")
    net, given = tiny().to(place.device), _moved(batch(1, 4, (128, 192), 64), place.device)
    weights = dict.fromkeys(TERMS, 1.0)
    for mode in ("default", "error"):  # the first pass may set up libraries
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with torch.autocast("cuda", torch.bfloat16):
                net(*given, weights).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        synchronize(place.device)
    return {}
