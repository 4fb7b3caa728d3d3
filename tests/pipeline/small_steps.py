"""A very small joint model, its engine and made-up batches, for tests of steps on one and several ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mcjepa.model.config import EncoderConfig, ExpanderConfig, FlowConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.engine.engine import build_engine
from mcjepa.pipeline.settings.train import EngineConfig, OptimizerConfig, TrainConfig
from mcjepa.pipeline.stream.batches import PairBatch, StepBatch, ViewBatch
from mcjepa.pipeline.world import World

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTS = {
    "regression": 1.0, "reconstruction": 1.0, "smoothness": 1.0, "cycle": 0.2, "vc": 1.0, "content": 1.0,
}  # fmt: skip


def small_model(config: ModelConfig | None = None) -> MCJEPA:
    if config:
        return MCJEPA(config)
    encoder = EncoderConfig(
        stem_channels=(4, 4), stage_channels=(8, 8, 8, 8), depths=(1, 1, 1, 1), init_std=0.0, drop_path=0.0
    )
    flow = FlowConfig(widths=(8, 8), context_widths=(8, 8), context_dilations=(1, 2), coarsest_stride=8)
    return MCJEPA(ModelConfig(encoder=encoder, flow=flow, expander=ExpanderConfig(widths=(16, 16))))


def small_engine(
    world: World, stage: int = 0, precision: Any = "fp32", parts: int = 1, config: ModelConfig | None = None
) -> Any:
    """An engine over `small_model`; the same weights on every call."""
    torch.manual_seed(3)
    engine = EngineConfig(
        zero_stage=stage,  # type: ignore[arg-type]
        precision=precision, accumulation_steps=parts, split_statistics=True,
    )  # fmt: skip
    optimizer = OptimizerConfig(encoder_lr=1e-3, estimator_lr=1e-3, warmup_steps=0)
    settings = TrainConfig(run="unused", steps=100, engine=engine, optimizer=optimizer)
    built = build_engine(small_model(config), settings, world)
    built.train()
    return built


def made_up_batch(step: int, rank: int = 0, pairs: int = 2, views: int = 4) -> StepBatch:
    """Random images that depend on step and rank."""
    rng = torch.Generator().manual_seed(1000 * step + rank)

    def images(count: int) -> torch.Tensor:
        return torch.rand(count, 3, 32, 32, generator=rng)

    keys = tuple(f"s{step}r{rank}n{number}" for number in range(max(pairs, views)))
    return StepBatch(
        step,
        PairBatch(images(pairs), images(pairs), keys[:pairs]),
        ViewBatch(images(views), images(views), keys[:views]),
    )


def start_ranks(program: Path, ranks: int, *words: str) -> list[subprocess.Popen[str]]:
    """Starts a program as several ranks on this machine, told by plain variables."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    places = f"{REPOSITORY}{os.pathsep}{Path(__file__).parent}"
    shared = {**kept, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, str(program), *words],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": places},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def finish_ranks(started: list[subprocess.Popen[str]], within_s: float) -> list[tuple[str, str]]:
    """Output and errors of every rank; none of them runs afterwards, also where one did not end in time."""
    try:
        return [process.communicate(timeout=within_s) for process in started]
    finally:
        for process in started:
            process.kill()
