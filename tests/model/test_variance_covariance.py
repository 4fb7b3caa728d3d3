"""The variance-covariance term on maps."""

from __future__ import annotations

import pytest
import torch

from mcjepa.model.losses.variance_covariance import channel_covariances, variance_covariance_loss


def test_covariance_equals_torch_cov_over_positions() -> None:
    x = 3 + torch.randn(2, 5, 4, 6)
    expected = torch.cov(x.permute(1, 0, 2, 3).flatten(1))
    torch.testing.assert_close(channel_covariances([x])[0], expected, rtol=1e-5, atol=1e-5)


def test_two_channels_by_hand() -> None:
    x = torch.tensor([[0.0, 0.4, 0.8], [0.0, 3.0, 0.0]]).view(1, 2, 1, 3)
    # variances 0.16 and 3, covariance 0
    variance, covariance = variance_covariance_loss([x], [2.0], [5.0])
    assert variance.item() == pytest.approx(2 * (1 - 0.1601**0.5) / 2, rel=1e-5)
    assert covariance.item() == pytest.approx(0, abs=1e-9)
    y = torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0]]).view(1, 2, 1, 3)  # covariance 2, twice off the diagonal
    variance, covariance = variance_covariance_loss([y], [2.0], [5.0])
    assert variance.item() == 0
    assert covariance.item() == pytest.approx(5 * 2 * 2**2 / 2, rel=1e-5)


def test_collapsed_maps_cost_the_hinge_s_maximum() -> None:
    x = torch.full((2, 4, 3, 3), 7.0, requires_grad=True)
    variance, covariance = variance_covariance_loss([x], [1.0], [1.0])
    (variance + covariance).backward()
    assert variance.item() == pytest.approx(1 - 0.01)
    assert covariance.item() == 0
    assert x.grad is not None and x.grad.isfinite().all()


def test_decorrelated_maps_of_unit_variance_cost_nothing() -> None:
    samples = torch.randn(600, 6, dtype=torch.float64)
    samples -= samples.mean(0)
    orthogonal = torch.linalg.qr(samples).Q * 599**0.5 * 1.01
    x = orthogonal.T.reshape(6, 2, 15, 20).transpose(0, 1).float()
    variance, covariance = variance_covariance_loss([x], [1.0], [1.0])
    assert variance.item() == 0
    assert covariance.item() == pytest.approx(0, abs=1e-6)


def test_an_offset_of_a_channel_changes_nothing() -> None:
    x = torch.randn(2, 4, 3, 5)
    moved = x + torch.randn(1, 4, 1, 1)
    for a, b in zip(variance_covariance_loss([x], [1], [1]), variance_covariance_loss([moved], [1], [1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_levels_have_their_own_weights() -> None:
    maps = [0.3 * torch.randn(2, c, 4, 4) for c in (3, 5, 7)]
    variance, covariance = variance_covariance_loss(maps, [1.0, 0.0, 3.0], [0.0, 0.0, 2.0])
    apart = [variance_covariance_loss([x], [1.0], [1.0]) for x in maps]
    torch.testing.assert_close(variance, apart[0][0] + 3 * apart[2][0])
    torch.testing.assert_close(covariance, 2 * apart[2][1])


def test_gradients_agree_with_finite_differences(in_float64: None) -> None:
    x = (0.4 * torch.randn(2, 3, 2, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sum(variance_covariance_loss([x], [1.0], [1.0])), (x,))


def test_one_position_in_all_is_finite() -> None:
    x = torch.randn(1, 3, 1, 1, requires_grad=True)
    variance, covariance = variance_covariance_loss([x], [1.0], [1.0])
    (variance + covariance).backward()
    assert variance.item() == pytest.approx(0.99)
    assert x.grad is not None and x.grad.isfinite().all()


def vicregl_terms(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and covariance with a C x C matrix at every position, as VICRegL's paper defines them on maps."""
    positions = x.flatten(2).permute(2, 0, 1)  # (P, B, C)
    variance = torch.relu(1 - torch.sqrt(positions.var(1) + 1e-4)).mean()
    parts = []
    for z in positions:
        matrix = torch.cov(z.T)
        parts.append((matrix - torch.diag(matrix.diagonal())).square().sum() / len(matrix))
    return variance, torch.stack(parts).mean()


@pytest.mark.parametrize("images", [2, 5, 12])
def test_images_as_samples_equal_the_statistics_at_each_position(in_float64: None, images: int) -> None:
    maps = [(2 + 0.7 * torch.randn(images, c, 3, 4, dtype=torch.float64)).requires_grad_() for c in (6, 4)]
    variance, covariance = variance_covariance_loss(maps, [1.0, 2.0], [3.0, 0.0], "images")
    (v0, c0), (v1, _) = (vicregl_terms(x) for x in maps)
    for ours, expected in ((variance, v0 + 2 * v1), (covariance, 3 * c0)):
        torch.testing.assert_close(ours, expected)
        gradients = [
            torch.autograd.grad(term, maps, retain_graph=True, allow_unused=True, materialize_grads=True)
            for term in (ours, expected)
        ]
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other)


def test_two_images_at_two_positions_by_hand() -> None:
    x = torch.zeros(2, 2, 1, 2)  # images, channels, positions
    x[1, :, 0, 0] = torch.tensor([1.0, 2.0])  # differences 1 and 2: variances 0.5 and 2, covariance 1
    x[1, :, 0, 1] = torch.tensor([0.6, 0.0])  # variances 0.18 and 0, covariance 0
    variance, covariance = variance_covariance_loss([x], [1.0], [5.0], "images")
    hinges = [1 - 0.5001**0.5, 0.0, 1 - 0.1801**0.5, 1 - 0.01]
    assert variance.item() == pytest.approx(sum(hinges) / 4, rel=1e-5)
    assert covariance.item() == pytest.approx(5 * (2 * 1**2 / 2 + 0) / 2, rel=1e-5)


def test_a_pattern_that_all_images_share_is_no_variance_between_images() -> None:
    pattern = 3 * torch.randn(1, 4, 6, 6).expand(5, 4, 6, 6)
    assert variance_covariance_loss([pattern], [1.0], [0.0], "positions")[0].item() == 0
    assert variance_covariance_loss([pattern], [1.0], [0.0], "images")[0].item() == pytest.approx(0.99)


def test_gradients_with_images_as_samples_agree_with_finite_differences(in_float64: None) -> None:
    x = (0.4 * torch.randn(3, 4, 2, 1, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sum(variance_covariance_loss([x], [1.0], [1.0], "images")), (x,))


@pytest.mark.parametrize("samples", ["positions", "images"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 4, 4), (4, 3, 2, 2)])
def test_one_image_and_constant_maps_are_finite(samples: str, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, -2.0, requires_grad=True)
    variance, covariance = variance_covariance_loss([x], [1.0], [1.0], samples)
    (variance + covariance).backward()
    assert variance.item() == pytest.approx(0.99) and covariance.item() == 0
    assert x.grad is not None and x.grad.isfinite().all()


def test_many_large_positions_keep_the_precision_of_fp32() -> None:
    """A mean far from zero over a million positions: a one-pass variance would lose it."""
    x = 100 + torch.randn(2, 2, 512, 1024)
    matrix = channel_covariances([x])[0]
    exact = torch.cov(x.double().permute(1, 0, 2, 3).flatten(1))
    torch.testing.assert_close(matrix.double(), exact, rtol=1e-4, atol=1e-4)
