"""The DeepSpeed adapter: process group, engine, and the few questions that a step asks of it.

Traps that this file keeps from the rest (DeepSpeed 0.19 on CPU): its shared-memory collective would be compiled at
every first start, its own AdamW too, and it imports mlflow for its autotuner. A world is described by the ordinary
variables RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, as torchrun, Slurm and deepspeed set them; without
them this process is a world of one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.train_config import EngineConfig, OptimizerConfig, TrainConfig

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


def _import_deepspeed() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # its autotuner would import it: seconds a rank
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    if os.environ["DS_ACCELERATOR"] == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_world(config: EngineConfig) -> World:
    """Joins the process group named by the environment, or makes one of this process alone.

    Raises:
        UsageError: the master port is taken, the variables are incomplete, or fp16 is asked of a CPU.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UsageError(f"WORLD_SIZE is {world_size} but {', '.join(missing)} is not set; start with torchrun")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    cuda = torch.cuda.is_available()
    if config.precision == "fp16" and not cuda:
        raise UsageError("train.engine.precision is fp16, which needs a GPU, and there is none; use bf16 or fp32")
    local_rank = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local_rank)
    else:
        _keep_freed_memory()
    torch.set_num_threads(config.threads or max(len(os.sched_getaffinity(0)) // _ranks_here(world_size), 1))
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    deepspeed = _import_deepspeed()
    try:
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    except RuntimeError as error:
        if "address already in use" in str(error).lower() or "EADDRINUSE" in str(error):
            raise UsageError(
                f"port {os.environ['MASTER_PORT']} on {os.environ['MASTER_ADDR']} is in use, expected a free one; "
                "set MASTER_PORT to another, or leave it unset for a single process"
            ) from error
        raise
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local_rank, device)


def _ranks_here(world_size: int) -> int:
    """Ranks that share this machine, as launchers tell; the whole world where they do not."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return max(int(os.environ[name]), 1)
    return world_size


def _keep_freed_memory() -> None:
    """Asks glibc to keep freed blocks: fresh pages for every temporary cost a third of a small step on CPUs."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Encoder and expander, estimator; each with and without weight decay (none on norms and biases)."""
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        estimator = name.startswith("flow_estimator.")
        branch = "estimator" if estimator else "encoder"
        decays = parameter.ndim > 1
        decay = config.estimator_weight_decay if estimator else config.encoder_weight_decay
        rate = config.estimator_lr if estimator else config.encoder_lr
        group = groups.setdefault(
            f"{branch}{'' if decays else '-no-decay'}",
            {"params": [], "lr": rate, "peak_lr": rate, "weight_decay": decay if decays else 0.0},
        )
        group["params"].append(parameter)
    return [{**group, "name": name} for name, group in sorted(groups.items())]


def engine_options(config: TrainConfig, world: World) -> dict[str, Any]:
    """The DeepSpeed configuration of this recipe; `train.engine.options` is laid over it."""
    engine = config.engine
    pairs = max(config.stream.pair_batch // world.size, 1)
    options: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": pairs,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": {"stage": engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if engine.precision == "bf16":
        options["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif engine.precision == "fp16":
        options["fp16"] = {"enabled": True}
    return options | engine.options


def build_engine(model: nn.Module, config: TrainConfig, world: World) -> Any:
    """Wraps the model into a DeepSpeed engine with AdamW over `parameter_groups`."""
    deepspeed = _import_deepspeed()
    optimizer = torch.optim.AdamW(parameter_groups(model, config.optimizer), betas=config.optimizer.betas)
    with _quiet_logger():
        engine, *_ = deepspeed.initialize(
            model=model.to(world.device), optimizer=optimizer, config=engine_options(config, world)
        )
    return engine


@contextlib.contextmanager
def _quiet_logger() -> Iterator[None]:
    import logging

    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def set_learning_rates(engine: Any, factor: float) -> dict[str, float]:
    """Sets each group's rate to its peak times `factor`; returns the rates by branch."""
    rates: dict[str, float] = {}
    for group in engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
        rates[str(group["name"]).split("-")[0]] = group["lr"]
    return rates


def gradient_norm(engine: Any) -> float | None:
    """Global gradient norm of the last step before clipping; None where the engine does not tell."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def any_rank(flags: torch.Tensor) -> torch.Tensor:
    """Elementwise maximum over ranks of a small float tensor."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return flags


def share_text(text: str) -> str:
    """Rank 0's text on every rank; all ranks call it."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return text
    box: list[str] = [text]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def stop_world() -> None:
    """Leaves the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
