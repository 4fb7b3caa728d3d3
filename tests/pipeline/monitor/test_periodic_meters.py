"""Spread of features, alerts, gradients of branches and tasks, against explicit computations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from small_steps import WEIGHTS, finish_ranks, made_up_batch, small_model, start_ranks

from mcjepa.pipeline.monitor.representation import Alerts, PeriodicMeters, effective_rank, global_covariances, spread_of
from mcjepa.pipeline.settings.monitor import AlertConfig, MeterConfig


class BareEngine:
    """What the meters ask of an engine, around a bare module."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = small_model()

    def zero_optimization_stage(self) -> int:
        return 0


def encoder_gradient(module: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    module.zero_grad()
    loss.backward()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.encoder.parameters()]
    )  # type: ignore[union-attr,attr-defined]


@pytest.mark.parametrize("student", [0.0, 50.0])
def test_the_tasks_gradients_are_those_of_losses_with_one_task_only(student: float) -> None:
    engine, batch, weights = BareEngine(), made_up_batch(0), {**WEIGHTS, "self_supervision": student}
    assert batch.pairs and batch.views
    images = (batch.pairs.frame0, batch.pairs.frame1), (batch.views.view0, batch.views.view1)
    with torch.no_grad():  # a flow that is not zero, so that a student of a part of the pair has another
        for parameter in engine.module.flow_estimator.residual.parameters():
            parameter.add_(0.002 * torch.randn_like(parameter))

    def loss_of(weights: Mapping[str, float]) -> torch.Tensor:
        torch.manual_seed(2)  # the student's windows
        return engine.module(*images, weights).loss  # type: ignore[no-any-return]

    tap = PeriodicMeters(engine, MeterConfig())
    with tap.forward():
        loss = loss_of(weights)
    tap.before_backward(loss)
    whole = encoder_gradient(engine.module, loss)
    flow = encoder_gradient(engine.module, loss_of({**weights, "content": 0.0}))
    content = encoder_gradient(engine.module, loss_of({"content": weights["content"]}))
    without = encoder_gradient(engine.module, loss_of({**weights, "content": 0.0, "self_supervision": 0.0}))
    assert torch.equal(without, flow) == (student == 0.0)
    assert torch.allclose(flow + content, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))
    found = tap.values
    assert found["encoder_gradient_flow"] == pytest.approx(float(flow.norm()), rel=1e-4)
    assert found["encoder_gradient_content"] == pytest.approx(float(content.norm()), rel=1e-4)
    assert found["gradient_cosine"] == pytest.approx(float(torch.cosine_similarity(flow, content, dim=0)), abs=1e-4)


@pytest.mark.parametrize("missing", ["pairs", "views"])
def test_a_task_that_has_not_begun_leaves_the_other_ones_features(missing: str) -> None:
    engine, batch = BareEngine(), made_up_batch(0)
    weights = {"content": 1.0} if missing == "pairs" else {"reconstruction": 1.0}
    assert batch.pairs and batch.views
    tap = PeriodicMeters(engine, MeterConfig())
    with tap.forward():
        images = (batch.pairs.frame0, batch.pairs.frame1), (batch.views.view0, batch.views.view1)
        output = engine.module(*images, weights)
    tap.before_backward(output.loss)
    assert ("embedding_rank" in tap.values) == (missing == "pairs")
    assert "stride64_rank" in tap.values and "gradient_cosine" not in tap.values


def test_effective_rank_counts_the_directions_that_are_used() -> None:
    assert effective_rank(torch.eye(8)) == pytest.approx(8.0)
    assert effective_rank(torch.diag(torch.tensor([1.0, 0.0, 0.0]))) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(3, 3)) == 0.0
    two_and_one = torch.diag(torch.tensor([4.0, 1.0]))  # singular values 2 and 1
    expected = math.exp(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3))
    assert effective_rank(two_and_one) == pytest.approx(expected, rel=1e-5)


def test_spread_is_that_of_torch_and_a_turned_set_has_the_same_rank() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 6) * torch.tensor([3.0, 1.0, 1.0, 0.5, 0.1, 0.0]) + 4.0
    (covariance,), (rows,) = global_covariances([x])
    assert torch.allclose(covariance, torch.cov(x.T), atol=1e-5)
    found = spread_of(covariance, rows)
    assert found.std_mean == pytest.approx(float(x.std(0).mean()), rel=1e-4)
    assert (found.std_least, found.dead_share) == (0.0, pytest.approx(1 / 6))
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    (turned,), _ = global_covariances([x @ turn])
    assert effective_rank(turned) == pytest.approx(found.rank, rel=1e-2)
    off = torch.cov(x.T)
    assert found.off_diagonal == pytest.approx(float((off - off.diag().diag()).square().sum() / 6), rel=1e-3)


def test_an_alert_is_given_once_until_the_value_is_back() -> None:
    alerts = Alerts(AlertConfig(embedding_std=0.01, flow_px=50.0))
    assert alerts.look({"embedding_std_mean": 0.5, "flow_px": 3.0}) == []
    assert len(alerts.look({"embedding_std_mean": 0.001, "flow_px": 60.0})) == 2
    assert alerts.look({"embedding_std_mean": 0.001}) == []
    cleared = ["alert cleared: embedding_std_mean is 0.5, within its limit 0.01"]
    assert alerts.look({"embedding_std_mean": 0.5, "flow_px": 60.0}) == cleared
    assert alerts.look({"embedding_std_mean": 0.5}) == []
    assert alerts.look({"embedding_std_mean": 0.001}) == ["alert: embedding_std_mean is 0.001, below its limit 0.01"]


def test_features_of_a_level_that_shrink_are_alerted() -> None:
    alerts = Alerts(AlertConfig(level_std=0.02))
    assert alerts.look({"stride4_std_mean": 0.11, "stride64_std_mean": 0.03}) == []
    assert alerts.look({"stride4_std_mean": 0.011}) == ["alert: stride4_std_mean is 0.011, below its limit 0.02"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_meters_agree_on_all_zero_stages_and_do_not_change_the_training() -> None:
    started = start_ranks(Path(__file__).with_name("meter_ranks.py"), 2)
    answers = finish_ranks(started, 250)
    assert [process.returncode for process in started] == [0, 0], answers[0][1]
    seen = json.loads(answers[0][0].splitlines()[-1])
    for stage in range(4):
        assert seen[f"{stage}-metered"] == pytest.approx(seen[f"{stage}-plain"], rel=1e-5)
        values = seen[f"{stage}-values"]
        assert ("gradient_cosine" in values) == (stage < 3)
        for name in ("embedding_rank", "stride8_rank", "gradient_norm_encoder", "gradient_norm_expander"):
            assert values[name] == pytest.approx(seen["0-values"][name], rel=1e-2), (stage, name)
        if stage < 3:  # |a + b|^2 = |a|^2 + |b|^2 + 2 |a| |b| cos: the two tasks make up the encoder's gradient
            a, b = values["encoder_gradient_flow"], values["encoder_gradient_content"]
            whole = math.sqrt(a * a + b * b + 2 * a * b * values["gradient_cosine"])
            assert whole == pytest.approx(values["gradient_norm_encoder"], rel=1e-3)
