"""A recipe's engine settings as a DeepSpeed configuration, and the check of what `train.engine.options` adds to it.

DeepSpeed itself ignores a misspelt key at its top level. Here an unknown one is an error that names the nearest valid
one, and a key that the recipe sets by a field of its own is refused, so that one thing is said in one place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mcjepa.data_prep.errors import nearest_name
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.train import BUCKET_ELEMENTS, TrainConfig

SET_BY_RECIPE = {
    "train_batch_size": "train.stream.pair_batch and train.stream.view_batch",
    "train_micro_batch_size_per_gpu": "train.engine.accumulation_steps",
    "gradient_accumulation_steps": "train.engine.accumulation_steps",
    "gradient_clipping": "train.optimizer.clip_norm",
    "optimizer": "train.optimizer",
    "scheduler": "train.optimizer.warmup_steps",
    "zero_optimization.stage": "train.engine.zero_stage",
    "zero_optimization.cpu_offload": "train.engine.offload",
    "zero_optimization.cpu_offload_param": "train.engine.offload",
    "zero_optimization.offload_optimizer": "train.engine.offload",
    "zero_optimization.offload_param": "train.engine.offload",
    "compile": "train.engine.compile",
    "torch_autocast": "train.engine.precision",
    "bf16": "train.engine.precision",
    "fp16.enabled": "train.engine.precision",
    "fp16.auto_cast": "train.engine.precision",
}
"""Options that have a key of the recipe's own."""
UNFIT = {
    "checkpoint": "checkpoints are the run's own (train.checkpoint)",
    "data_types": "weights and moments are kept in fp32, which checkpoints rely on",
    "managed_gradient_accumulation": "a step is one update (train.engine.accumulation_steps)",
    "gradient_allreduce_op": "gradients are averaged: losses over the global batch rely on it",
    "zero_optimization.elastic_checkpoint": "checkpoints are the run's own and fit any world",
    "zero_optimization.round_robin_gradients": "checkpoints rely on the parameters' order",
    "pipeline": "the model is not a pipeline",
    "tensor_parallel": "the model is not cut into parts",
    "hybrid_engine": "nothing is generated",
    "weight_quantization": "weights are kept in fp32",
}
"""Options that this project's loop or checkpoints cannot work with, and why."""
PASSED_ON = (
    "activation_checkpointing", "aio", "autotuning", "comms_logger", "communication_data_type",
    "csv_monitor", "disable_allgather", "disable_python_gc", "dump_state", "flops_profiler", "fp16",
    "gradient_predivide_factor", "log_level", "memory_breakdown", "prescale_gradients", "steps_per_print",
    "tensorboard", "timers", "wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "zero_optimization",
)  # fmt: skip
"""Top-level options of DeepSpeed 0.19 that may be given."""


def engine_options(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a recipe, `train.engine.options` merged in.

    Raises:
        UsageError: an option is unknown, has a key of the recipe's own, or does not fit.
    """
    engine = config.engine
    batch = config.stream.view_batch or config.stream.pair_batch
    options: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": max(batch // (world_size * engine.accumulation_steps), 1),
        "gradient_accumulation_steps": engine.accumulation_steps,
        # ZeRO 0 clips, and so computes the norm, only for a limit above 0.
        "gradient_clipping": config.optimizer.clip_norm or (math.inf if engine.zero_stage == 0 else 0.0),
        "zero_optimization": {
            "stage": engine.zero_stage, "reduce_bucket_size": BUCKET_ELEMENTS, **_offload(engine.offload),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }  # fmt: skip
    if engine.offload != "none":
        options["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW runs on the host without compiling anything
    if engine.precision == "bf16":
        options["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif engine.precision == "fp16":
        options["fp16"] = {"enabled": True}
    check_options(engine.options)
    return _merged(options, engine.options)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses what cannot be passed on.

    Raises:
        UsageError: naming the option and what to do.
    """
    names = [str(name) for name in options]
    nested = [f"{name}.{key}" for name, value in options.items() if isinstance(value, Mapping) for key in value]
    for name in names + nested:
        if name in SET_BY_RECIPE:
            raise UsageError(
                f"train.engine.options.{name} is given, expected {SET_BY_RECIPE[name]}, which sets it; move it there"
            )
        if name in UNFIT:
            raise UsageError(f"train.engine.options.{name} is given, expected none: {UNFIT[name]}; remove it")
    for name in names:
        check_known(name, PASSED_ON, "train.engine.options")


def check_known(name: str, valid: Iterable[str], place: str) -> None:
    """Refuses a name that is not valid, with the nearest that is.

    Raises:
        UsageError: it is not.
    """
    known = sorted(valid)
    if name not in known:
        raise UsageError(f"unknown key '{place}.{name}': {nearest_name(name, known)}")


def _offload(offload: str) -> dict[str, Any]:
    host = {"device": "cpu", "pin_memory": True}
    if offload == "none":
        return {}
    return {"offload_optimizer": host} | ({"offload_param": host} if offload == "parameters" else {})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section."""
    result = dict(below)
    for name, value in above.items():
        old = result.get(name)
        result[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
