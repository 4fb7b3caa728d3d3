"""3x3 convolutions on CPUs: torch's numbers in every form, and each form where it is meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.model.layers import convolution, winograd
from mcjepa.model.layers.convolution import Convolution3x3, convolve_3x3, weights_kept
from mcjepa.model.layers.winograd import convolve_winograd, winograd_filters


def maps(*shape: int) -> Tensor:
    """Random, in channels-last memory, with a gradient to come."""
    return torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()


def require_near(found: Tensor, exact: Tensor, bound: float) -> None:
    """Both alike but for a share of the exact one's size."""
    assert found.shape == exact.shape
    found, exact = (tensor.detach().double() for tensor in (found, exact))
    assert (found - exact).norm().item() <= bound * exact.norm().item()


def results(out: Tensor, seed: Tensor, *inputs: Tensor) -> list[Tensor]:
    """A convolution's output and its gradients."""
    return [out, *torch.autograd.grad((out * seed).sum(), inputs)]


@pytest.mark.parametrize("size", [(4, 4), (9, 14), (16, 8), (3, 21), (1, 2)])
@pytest.mark.parametrize("block_tiles", [2, 512])
def test_winograd_gives_the_convolution_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], block_tiles: int
) -> None:
    monkeypatch.setattr(winograd, "BLOCK_TILES", block_tiles)  # rows of an image, or all images at once
    monkeypatch.setattr(winograd, "BLOCK_FILTERS", 20)
    x, weight, bias = maps(3, 5, *size), maps(7, 5, 3, 3), torch.randn(7, requires_grad=True)
    seed = torch.randn(3, 7, *size)
    found = results(convolve_winograd(x, winograd_filters(weight), bias), seed, x, weight, bias)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    exact = results(F.conv2d(*wide, padding=1), seed.double(), *wide)
    for ours, theirs in zip(found, exact, strict=True):
        require_near(ours, theirs, 1e-5)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_winograd_sums_a_tile_by_hand() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = 1
    weight = torch.arange(9.0).view(1, 1, 3, 3)
    out = convolve_winograd(x, winograd_filters(weight), torch.tensor([0.5]))
    torch.testing.assert_close(out[0, 0, :3, :3], weight[0, 0].flip(0, 1) + 0.5, rtol=0, atol=1e-5)
    torch.testing.assert_close(out[0, 0, 3], torch.full((4,), 0.5), rtol=0, atol=1e-5)


FORMS = {  # (batch, side, channels, outputs, dilation)
    "direct": (2, 12, 8, 8, 1),
    "direct, dilated": (2, 12, 8, 8, 4),
    "direct, of the middle taps": (2, 2, 64, 64, 2),
    "product": (2, 2, 64, 64, 1),
    "product of the middle taps": (1, 2, 128, 128, 2),
    "winograd": (2, 16, 64, 64, 1),
    "winograd, dilated": (2, 16, 64, 64, 2),
    "winograd, much dilated": (2, 32, 64, 64, 8),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("low", [False, True])
def test_every_form_gives_the_convolution_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, form: str, low: bool
) -> None:
    batch, side, channels, outputs, dilation = FORMS[form]
    taken: list[str] = []
    for name in ("_by_winograd", "_as_product"):
        real = getattr(convolution, name)

        def noted(*args: Any, name: str = name, real: Any = real) -> Tensor:
            taken.append(name)
            out: Tensor = real(*args)
            return out

        monkeypatch.setattr(convolution, name, noted)
    torch.manual_seed(0)
    layer, x = Convolution3x3(channels, outputs, dilation), maps(batch, channels, side, side)
    seed = torch.randn(batch, outputs, side, side)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = layer(x)
    assert out.dtype == (torch.bfloat16 if low else torch.float32)
    found = results(out.float(), seed, x, *layer.parameters())
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, *layer.parameters())]
    exact = results(F.conv2d(*wide, padding=dilation, dilation=dilation), seed.double(), *wide)
    for ours, theirs in zip(found, exact, strict=True):
        require_near(ours, theirs, 1e-2 if low else 1e-5)
    expected = {"p": "_as_product", "w": "_by_winograd"}.get(form[0])
    assert taken == ([expected] if expected and not (low and form[0] == "w") else [])


def test_double_precision_stays_as_it_is() -> None:
    x, layer = torch.randn(2, 64, 16, 16, dtype=torch.float64), Convolution3x3(64, 64).double()
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=0, atol=0)


@pytest.mark.parametrize(("side", "low"), [(16, False), (2, False), (2, True)])
def test_kept_weights_are_formed_once_and_have_the_gradient_of_all_calls(
    monkeypatch: pytest.MonkeyPatch, side: int, low: bool
) -> None:
    layer, x = Convolution3x3(64, 64), torch.randn(3, 2, 64, side, side)
    made: list[int] = []
    real = convolution._form

    def noted(key: tuple[object, ...], make: Any) -> Tensor:
        return real(key, lambda: (made.append(1), make())[1])

    monkeypatch.setattr(convolution, "_form", noted)

    def gradients() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = torch.stack([layer(part).float().square().sum() for part in x]).sum()
        return torch.autograd.grad(loss, list(layer.parameters()))

    apart = gradients()
    assert len(made) == 3
    with weights_kept():
        together = gradients()
    assert len(made) == 4
    for ours, theirs in zip(together, apart, strict=True):
        require_near(ours, theirs, 1e-2 if low else 1e-5)
    with torch.no_grad():
        layer.weight.mul_(2)
    with weights_kept():  # a later pass sees the weight as it is then
        doubled = convolve_3x3(x[0], layer.weight, None)
    require_near(doubled, F.conv2d(x[0], layer.weight, padding=1), 1e-5)


def test_a_batch_of_nothing_has_gradients_of_nothing() -> None:
    layer = Convolution3x3(64, 64)
    layer(torch.zeros(0, 64, 16, 16)).sum().backward()
    assert layer.weight.grad is not None and not layer.weight.grad.any()
