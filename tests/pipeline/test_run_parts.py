"""Schedule, meters, parameter groups, guards and term weights."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest
import torch

from model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
from model.mcjepa import MCJEPA
from pipeline.engine import World, engine_options, parameter_groups
from pipeline.guards import StopRequest
from pipeline.meters import Meters, append_record, read_records
from pipeline.schedule import rate_factor
from pipeline.train_config import OptimizerConfig, TermConfig, TermsConfig, TrainConfig


def small_model() -> MCJEPA:
    encoder = EncoderConfig(stem_channels=(4, 4), stage_channels=(4, 4, 4, 4), depths=(1, 1, 1, 1))
    return MCJEPA(
        ModelConfig(encoder=encoder, flow=FlowConfig(width_factor=0.05), expander=ExpanderConfig(widths=(8, 8)))
    )


def test_the_rate_rises_then_falls_to_nearly_nothing() -> None:
    factors = [rate_factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == [pytest.approx((k + 1) / 10) for k in range(10)]
    assert max(factors) == 1.0 and factors[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_a_warm_up_longer_than_the_run_is_cut() -> None:
    assert rate_factor(4, 5, 100) == 1.0


def test_norms_and_biases_do_not_decay_and_branches_have_their_rates() -> None:
    model = small_model()
    config = OptimizerConfig(encoder_lr=1.0, estimator_lr=0.5, encoder_weight_decay=0.1, estimator_weight_decay=0.2)
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "encoder": (1.0, 0.1), "encoder-no-decay": (1.0, 0.0),
        "estimator": (0.5, 0.2), "estimator-no-decay": (0.5, 0.0),
    }  # fmt: skip
    assert all(p.ndim > 1 for p in groups["encoder"]["params"])


def test_own_deepspeed_options_are_laid_over_ours() -> None:
    from pipeline.train_config import EngineConfig

    config = TrainConfig(run="r", steps=1, engine=EngineConfig(options={"steps_per_print": 7}, precision="bf16"))
    options = engine_options(config, World(0, 2, 0, torch.device("cpu")))
    assert options["steps_per_print"] == 7 and options["torch_autocast"]["enabled"]
    assert options["train_micro_batch_size_per_gpu"] == 4


def test_terms_start_at_their_step_and_the_balance_leaves_content_alone() -> None:
    terms = TermsConfig(video_balance=0.1, cycle=TermConfig(weight=2.0, start_step=5))
    assert terms.weights_at(4)["cycle"] == 0.0
    assert terms.weights_at(5)["cycle"] == pytest.approx(0.2)
    assert terms.weights_at(0)["content"] == 1.0 and terms.weights_at(0)["smoothness"] == pytest.approx(7.5)


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
        append_record(path, step, {"loss": value})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [(r["step"], r["loss"]) for r in read_records(path)] == [(2, 3.0), (4, 2.0)]


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
