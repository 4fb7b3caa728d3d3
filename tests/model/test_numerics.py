"""How exactly and repeatably GPUs compute is said for the whole process."""

from __future__ import annotations

import pytest
import torch

from mcjepa.evals.models import choose_device
from mcjepa.model.numerics import set_numerics


@pytest.mark.parametrize("deterministic", [True, False])
def test_how_exactly_a_gpu_computes_is_set_in_all_places_that_torch_has(deterministic: bool) -> None:
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with cudnn.flags():  # puts back what was there
        try:
            for tf32 in (True, False):
                set_numerics(tf32=tf32, cudnn_benchmark=True, deterministic=deterministic)
                assert (products.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
                assert (cudnn.benchmark, cudnn.deterministic) == (not deterministic, deterministic)
                assert torch.are_deterministic_algorithms_enabled() == deterministic
        finally:
            torch.use_deterministic_algorithms(False)


def test_scores_are_not_computed_in_tf32() -> None:
    with torch.backends.cudnn.flags(allow_tf32=True):
        choose_device("cpu")
        assert not torch.backends.cudnn.allow_tf32
