"""Meters, parameter groups and guards."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.engine.parameters import parameter_groups
from mcjepa.pipeline.monitor.guards import StopRequest
from mcjepa.pipeline.monitor.meters import Meters
from mcjepa.pipeline.run.folder import metrics_line, read_metrics
from mcjepa.pipeline.run.lines import PatientLines
from mcjepa.pipeline.settings.train import OptimizerConfig


def small_model() -> MCJEPA:
    encoder = EncoderConfig(stem_channels=(4, 4), stage_channels=(4, 4, 4, 4), depths=(1, 1, 1, 1))
    return MCJEPA(
        ModelConfig(encoder=encoder, flow=FlowConfig(width_factor=0.05), expander=ExpanderConfig(widths=(8, 8)))
    )


def test_norms_and_biases_do_not_decay_and_branches_have_their_rates() -> None:
    model = small_model()
    config = OptimizerConfig(encoder_lr=1.0, estimator_lr=0.5, encoder_weight_decay=0.1, estimator_weight_decay=0.2)
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "encoder": (1.0, 0.1), "encoder-no-decay": (1.0, 0.0),
        "expander": (1.0, 0.1), "expander-no-decay": (1.0, 0.0),
        "estimator": (0.5, 0.2), "estimator-no-decay": (0.5, 0.0),
    }  # fmt: skip
    assert all(p.ndim > 1 for p in groups["encoder"]["params"])


def test_meters_average_each_name_over_the_steps_that_had_it() -> None:
    meters = Meters()
    meters.add({"a": torch.tensor(1.0), "b": 4.0})
    meters.add({"a": torch.tensor(3.0)})
    meters.step_done(0.0)
    record = meters.record()
    assert (record["a"], record["b"]) == (2.0, 4.0)
    assert 0 <= record["data_wait_share"] <= 1
    assert "a" not in meters.record()


def test_records_read_back_the_last_of_a_step_and_skip_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.jsonl"
    for step, value in ((2, 1.0), (4, 2.0), (2, 3.0)):
        PatientLines(path).append(metrics_line(step, {"loss": value}))
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(2, 3.0), (4, 2.0)]


def test_a_stop_signal_is_noted_and_a_second_interrupt_is_immediate() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
