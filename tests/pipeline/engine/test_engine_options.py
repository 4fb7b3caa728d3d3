"""What a recipe makes of DeepSpeed's configuration, and which options it takes beside."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from mcjepa.pipeline.engine.options import check_options, engine_options
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch.facts import bucket_options
from mcjepa.pipeline.settings.stream import StreamConfig
from mcjepa.pipeline.settings.train import EngineConfig, OptimizerConfig, TermConfig, TermsConfig, TrainConfig


def recipe(**engine: Any) -> TrainConfig:
    stream = StreamConfig(pair_batch=4, view_batch=16)
    return TrainConfig(run="r", steps=1, stream=stream, engine=EngineConfig(**engine))


def test_own_options_are_merged_section_by_section() -> None:
    own = {"zero_optimization": {"reduce_bucket_size": 1000}, "comms_logger": {"enabled": False}}
    options = engine_options(recipe(zero_stage=2, precision="bf16", options=own), world_size=2)
    assert options["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert options["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert options["train_micro_batch_size_per_gpu"] == 8 and options["comms_logger"] == {"enabled": False}


def test_a_power_of_ten_of_a_recipe_is_a_number() -> None:
    own = yaml.safe_load("{zero_optimization: {reduce_bucket_size: 1e8}, communication_data_type: fp16}")
    assert own["zero_optimization"]["reduce_bucket_size"] == "1e8"
    config = recipe(zero_stage=2, options=own)
    assert engine_options(config, world_size=2)["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1e8}
    assert bucket_options(config.engine.options, 2) == (100_000_000, False)
    assert config.engine.options["communication_data_type"] == "fp16"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gradient_cliping": 1.0}, "unknown key"),
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'"),
        ({"gradient_clipping": 1.0}, "train.optimizer.clip_norm"),
        ({"zero_optimization": {"stage": 3}}, "train.engine.zero_stage"),
        ({"fp16": {"enabled": True}}, "train.engine.precision"),
        ({"train_batch_size": 8}, "train.stream.pair_batch"),
        ({"checkpoint": {"load_universal": True}}, "train.checkpoint"),
        ({"compile": {"deepcompile": True}}, "expected train.engine.compile"),
    ],
)
def test_unknown_options_and_those_of_the_recipe_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_options(options)


def test_a_bucket_is_a_tenth_of_deepspeeds_and_the_preflight_counts_the_same() -> None:
    zero = engine_options(recipe(zero_stage=2), 1)["zero_optimization"]
    assert zero["reduce_bucket_size"] == 50_000_000 == bucket_options({}, 2)[0]
    assert bucket_options({"zero_optimization": {"reduce_bucket_size": 7}}, 2)[0] == 7


def test_a_norm_is_computed_even_without_clipping_in_zero_0() -> None:
    config = TrainConfig(
        run="r", steps=1, engine=EngineConfig(zero_stage=0), optimizer=OptimizerConfig(clip_norm=0.0)
    )  # fmt: skip
    assert engine_options(config, 1)["gradient_clipping"] == math.inf


def test_compiled_parts_do_not_go_with_parameters_that_come_and_go() -> None:
    with pytest.raises(ValueError, match="compile is true with zero_stage 3"):
        EngineConfig(compile=True, zero_stage=3)
    assert EngineConfig(compile=True).compile


def test_offloading_needs_its_stage() -> None:
    with pytest.raises(ValueError, match="stage of at least 3"):
        EngineConfig(offload="parameters", zero_stage=2)
    options = engine_options(recipe(offload="optimizer", zero_stage=1), 1)
    assert options["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert options["zero_force_ds_cpu_optimizer"] is False


def test_micro_batches_are_refused_with_vicreg_unless_its_statistics_may_be_split() -> None:
    with pytest.raises(ValueError, match=r"split_statistics"):
        recipe(accumulation_steps=2)
    assert engine_options(recipe(accumulation_steps=2, split_statistics=True), 2)["train_micro_batch_size_per_gpu"] == 4
    motion = TermsConfig(content=TermConfig(weight=0.0))
    assert TrainConfig(run="r", steps=1, terms=motion, engine=EngineConfig(accumulation_steps=2)).steps == 1


def test_fp16_without_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="ZeRO 1 to 3"):
        EngineConfig(precision="fp16", zero_stage=0)
