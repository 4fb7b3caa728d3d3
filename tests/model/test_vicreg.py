"""The content term against the published formulation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcjepa.model.losses.vicreg import vicreg_terms


def published_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance with D x D matrices, as the paper's code base writes them."""
    rows, width = x.shape
    invariance = F.mse_loss(x, y)
    x, y = x - x.mean(0), y - y.mean(0)
    variance, covariance = x.new_zeros(()), x.new_zeros(())
    for z in (x, y):
        variance = variance + F.relu(1 - torch.sqrt(z.var(0) + 0.0001)).mean() / 2
        matrix = (z.T @ z) / (rows - 1)
        off_diagonal = matrix[~torch.eye(width, dtype=torch.bool)]
        covariance = covariance + off_diagonal.square().sum() / width
    return invariance, variance, covariance


@pytest.mark.parametrize(("rows", "width"), [(2, 7), (6, 20), (20, 20), (40, 8)])
def test_terms_and_gradients_equal_the_published_ones(in_float64: None, rows: int, width: int) -> None:
    views = [(0.8 * torch.randn(rows, width, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    for ours, published in zip(vicreg_terms(*views), published_terms(*views), strict=True):
        torch.testing.assert_close(ours, published, rtol=1e-10, atol=1e-12)
        gradients = [
            torch.autograd.grad(term, views, retain_graph=True, allow_unused=True) for term in (ours, published)
        ]
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_a_constant_feature_changes_the_branch_and_not_the_covariances(in_float64: None) -> None:
    z = torch.randn(9, 9, dtype=torch.float64)
    wider = torch.cat((z, torch.full((9, 1), 4.0, dtype=torch.float64)), dim=1)
    by_features, by_samples = vicreg_terms(z, z)[2], vicreg_terms(wider, wider)[2]  # N >= D: D x D products; N < D
    torch.testing.assert_close(10 * by_samples, 9 * by_features)


def test_two_samples_by_hand() -> None:
    z, other = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.6]])
    invariance, variance, covariance = vicreg_terms(z, other)
    assert invariance.item() == pytest.approx((1 + 1.4**2) / 4)
    # variances 0.5 and 2 (no hinge); 0 and 0.18
    hinges = (1 - 0.5001**0.5) / 2 / 2 + ((1 - 0.01) + (1 - 0.1801**0.5)) / 2 / 2
    assert variance.item() == pytest.approx(hinges, rel=1e-5)
    assert covariance.item() == pytest.approx(2 * 1.0**2 / 2, rel=1e-5)  # covariance of 0, 1 and 0, 2 is 1


def test_collapsed_embeddings_cost_the_hinge_s_maximum_with_finite_gradients() -> None:
    z = torch.full((4, 6), 3.0, requires_grad=True)
    invariance, variance, covariance = vicreg_terms(z, z)
    (invariance + variance + covariance).backward()
    assert invariance.item() == 0 and covariance.item() == pytest.approx(0, abs=1e-9)
    assert variance.item() == pytest.approx(0.99)
    assert z.grad is not None and z.grad.isfinite().all()


def test_an_offset_of_both_views_and_the_order_of_samples_change_nothing() -> None:
    z, other, order = torch.randn(8, 5), torch.randn(8, 5), torch.randperm(8)
    before = vicreg_terms(z, other)
    for changed in (vicreg_terms(z + 2, other + 2), vicreg_terms(z[order], other[order]), vicreg_terms(other, z)):
        for a, b in zip(changed, before, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "width"), [(3, 5), (6, 3)])
def test_gradients_agree_with_finite_differences(in_float64: None, rows: int, width: int) -> None:
    views = [(0.5 * torch.randn(rows, width, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(vicreg_terms, views)


def test_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 2"):
        vicreg_terms(torch.randn(1, 4), torch.randn(1, 4))


@pytest.mark.parametrize(("rows", "width"), [(24, 64), (512, 64)])
def test_products_of_embeddings_stay_in_fp32_under_autocast(rows: int, width: int) -> None:
    """In bf16 the difference of the total and the diagonal is mostly rounding once features are decorrelated."""
    z = torch.randn(rows, width)
    z = torch.linalg.qr(z - z.mean(0)).Q * 1.3 * rows**0.5 if rows > width else z
    expected = vicreg_terms(z, z)
    with torch.autocast("cpu", torch.bfloat16):
        terms = vicreg_terms(z, z)
    assert terms[2].item() == pytest.approx(expected[2].item(), rel=1e-4, abs=1e-5)
    assert terms[1].item() == pytest.approx(expected[1].item(), rel=1e-4)
