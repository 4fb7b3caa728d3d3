"""The DeepSpeed adapter: process group, engine, and the few questions that a step asks of it.

Traps that this file keeps from the rest (DeepSpeed 0.19): its own AdamW would be compiled at every first start on CPUs;
without ZeRO it clips gradients without telling their norm. Those of its import are in `imports`; what the engine holds,
parameter by parameter, is `state`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from types import MethodType
from typing import Any

import torch

from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.numerics import set_numerics
from mcjepa.pipeline.engine.imports import defer_compiler, import_deepspeed, load_compiler
from mcjepa.pipeline.engine.options import check_known, engine_options
from mcjepa.pipeline.engine.parameters import parameter_groups
from mcjepa.pipeline.engine.state import reset_updates
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.train import EngineConfig, TrainConfig
from mcjepa.pipeline.stream.seeding import mix64
from mcjepa.pipeline.world import (
    World,
    adopt_world,
    check_gpus,
    disable_malloc_trim,
    gpu_index,
    own_cores,
    ranks_here,
    rest_at_exit,
)

__all__ = [
    "World",
    "any_rank",
    "build_engine",
    "compile_parts",
    "gathered_parameters",
    "gradient_norm",
    "seed_step",
    "set_learning_rates",
    "start_world",
    "stop_world",
]


def start_world(config: EngineConfig) -> World:
    """Joins the process group named by the environment, or makes one of this process alone.

    Raises:
        UsageError: the master port is taken, the variables are incomplete, GPUs are missing, or fp16 or offloading is
            asked of a CPU.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda = visible > 0
    check_gpus(os.environ.get("MCJEPA_GPUS", ""), visible)
    if config.precision == "fp16" and not cuda:
        raise UsageError("train.engine.precision is fp16, which needs a GPU, and there is none; use bf16 or fp32")
    if config.offload != "none" and not cuda:
        raise UsageError(
            f"train.engine.offload is {config.offload}, which moves state from a GPU to its host, and there is no GPU; "
            "set it to none"
        )
    adopt_world(os.environ)
    world_size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    index = 0
    if cuda:
        index = gpu_index(local_rank, ranks_here(world_size), visible, os.environ)
        torch.cuda.set_device(index)
    else:
        disable_malloc_trim()
    set_numerics(tf32=config.tf32, cudnn_benchmark=config.cudnn_benchmark, deterministic=config.deterministic)
    torch.set_num_threads(config.threads or own_cores(world_size))
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    deepspeed = import_deepspeed()
    try:
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    except RuntimeError as error:
        if "address already in use" in str(error).lower() or "EADDRINUSE" in str(error):
            raise UsageError(
                f"port {os.environ['MASTER_PORT']} on {os.environ['MASTER_ADDR']} is in use, expected a free one; "
                "set MASTER_PORT to another, or leave it unset for a single process"
            ) from error
        raise
    rest_at_exit()
    if config.compile:
        load_compiler()
    else:
        defer_compiler()  # not earlier: a process group that is made resets a compiler that is there
    device = torch.device("cuda", index) if cuda else torch.device("cpu")
    return World(int(os.environ["RANK"]), world_size, local_rank, device)


def compile_parts(model: MCJEPA, **how: Any) -> None:
    """Compiles what encoder and flow estimator compute, in place; weights, their names and hooks stay as they are.

    Args:
        model: the joint model; its losses, which sum over ranks, are left as they are.
        how: further arguments of `torch.compile`.
    """
    # The meters take gradients of the tasks apart: more than one backward pass through what a forward pass has kept.
    torch._functorch.config.donated_buffer = False
    for part in (model.encoder, model.flow_estimator):
        part.forward = torch.compile(part.forward, dynamic=False, **how)  # type: ignore[method-assign]


def build_engine(model: MCJEPA, config: TrainConfig, world: World) -> Any:
    """Wraps the model into a DeepSpeed engine with AdamW over `parameter_groups`.

    Raises:
        UsageError: `train.engine.options` holds something that DeepSpeed does not know or take.
    """
    deepspeed = import_deepspeed()
    from pydantic import ValidationError

    options = engine_options(config, world.size)
    fields = deepspeed.runtime.zero.config.DeepSpeedZeroConfig.model_fields
    known_zero = [*fields, *(field.alias for field in fields.values() if field.alias)]
    for name in options["zero_optimization"]:
        check_known(name, known_zero, "train.engine.options.zero_optimization")
    if config.engine.compile:
        compile_parts(model)
    fused = config.engine.offload == "none"  # one pass over each tensor; an offloaded one is stepped on the host
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.optimizer), betas=config.optimizer.betas, fused=fused or None
    )
    with _quiet_logger():
        try:
            engine, *_ = deepspeed.initialize(model=model.to(world.device), optimizer=optimizer, config=options)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"train.engine.options: {error.title} does not take {place}={first.get('input')!r} ({first['msg']}); "
                "correct it or leave it out"
            ) from error
    if config.engine.zero_stage == 0:
        engine.clip_fp32_gradients = MethodType(_clip_and_keep_norm, engine)
    if config.engine.zero_stage == 3:
        engine.optimizer.step = _stepping_once(engine.optimizer)
    return engine


def _stepping_once(optimizer: Any) -> Callable[..., Any]:
    """ZeRO-3's step, after which no gradient is left.

    DeepSpeed writes gradients over the last ones and clears nothing, so a parameter that a step does not use (one of
    the two batches alone) would be updated by its last gradient again.
    """
    step = optimizer.step

    def step_and_clear(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        optimizer.grad_partitions_flat_buffer.zero_()
        return result

    return step_and_clear


def _clip_and_keep_norm(engine: Any) -> None:
    """In place of DeepSpeed's own without ZeRO, which clips alike but drops the norm.

    Fused AdamW leaves an update out where it is told that something is not finite, without a word to the host.
    """
    norm = torch.nn.utils.clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping())
    engine._global_grad_norm = norm
    engine.optimizer.found_inf = (~norm.isfinite()).float()


@contextlib.contextmanager
def _quiet_logger() -> Iterator[None]:
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch for one step of one rank: a pure function, so no random state is kept or restored.

    What is drawn in a step (stochastic depth) is then the same after any resume, and when a step is run again.
    """
    torch.manual_seed(mix64(seed, "step", step, rank) >> 1)


def set_learning_rates(engine: Any, factor: float, idle: Collection[str] = ()) -> dict[str, float]:
    """Sets each group's rate to its peak times `factor`; returns the rates by branch.

    Groups of the branches in `idle` stand still: no rate, no decay, no count of updates (see `Schedule.idle_groups`).
    """
    rates: dict[str, float] = {}
    uncounted = set(idle)
    for group in engine.optimizer.param_groups:
        branch = str(group["name"]).split("-")[0]
        if group.get("idle"):  # the update of an idle step was counted after all
            uncounted.add(branch)
        group["idle"] = branch in idle
        group["lr"] = 0.0 if group["idle"] else group["peak_lr"] * factor
        rates[branch] = group["lr"]
    if uncounted:
        reset_updates(engine, uncounted)
    return rates


def gradient_norm(engine: Any) -> float | None:
    """Global gradient norm of the last step before clipping; None where the engine does not tell."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def gathered_parameters(engine: Any) -> contextlib.AbstractContextManager[Any]:
    """Holds the module's parameters whole on every rank for a while; all ranks enter it (ZeRO-3 cuts them)."""
    if engine.zero_optimization_stage() < 3:
        return contextlib.nullcontext()
    gathered: contextlib.AbstractContextManager[Any] = import_deepspeed().zero.GatheredParameters(
        list(engine.module.parameters())
    )
    return gathered


def any_rank(flags: torch.Tensor) -> torch.Tensor:
    """Elementwise maximum over ranks of a small float tensor."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return flags


def stop_world() -> None:
    """Leaves the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
