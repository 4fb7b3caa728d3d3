"""Parameters of the model in the engine: the optimizer's groups, and their gradients in whichever ZeRO stage.

Groups are encoder, expander and flow estimator, each with and without weight decay. Gradients are read between the
backward pass and the update. After `engine.backward` the averaged gradients are
    stage 0     in `parameter.grad`, whole on every rank
    stage 1, 2  in `optimizer.averaged_gradients[group]`, each rank its share of `params_in_partition[group]`
    stage 3     in `optimizer.averaged_gradients[group]`, each rank its share of every one of `fp16_groups[group]`
and lie elsewhere with an offloaded optimizer, where this file answers None. It pairs gradients with parameters just
as DeepSpeed 0.19 does for its own norm (`get_grad_norm_direct`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mcjepa.model.encoder import DropPath
from mcjepa.pipeline.settings.train import OptimizerConfig

BRANCHES = {"flow_estimator": "estimator", "expander": "expander"}
"""Group of a top-level module of the model; everything else belongs to `encoder`."""


def branch_of(name: str) -> str:
    """Group of a parameter by its name in the model: `encoder`, `expander` or `estimator`.

    >>> branch_of("flow_estimator.context.0.weight"), branch_of("encoder.stem.0.bias")
    ('estimator', 'encoder')
    """
    return BRANCHES.get(name.split(".")[0], "encoder")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """AdamW's groups, sorted by name: `encoder`, `encoder-no-decay` (norms and biases) and so on.

    The expander has the encoder's rate and decay; it is a group of its own because it may start at another step.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        branch = branch_of(name)
        estimator = branch == "estimator"
        decays = parameter.ndim > 1
        decay = config.estimator_weight_decay if estimator else config.encoder_weight_decay
        rate = config.estimator_lr if estimator else config.encoder_lr
        group = groups.setdefault(
            f"{branch}{'' if decays else '-no-decay'}",
            {"params": [], "lr": rate, "peak_lr": rate, "weight_decay": decay if decays else 0.0},
        )
        group["params"].append(parameter)
    return [{**group, "name": name} for name, group in sorted(groups.items())]


def stop_gradients(module: nn.Module) -> None:
    """Lets no gradient into a module whose outputs are a list of tensors: they leave it as constants, as in use.

    Its parameters stay in their groups, so that checkpoints have the same form; `Schedule.idle_groups` holds them
    still.
    """
    for part in module.modules():
        if isinstance(part, DropPath):
            part.rate = 0.0
    module.register_forward_hook(lambda _module, _inputs, outputs: [x.detach() for x in outputs])


def branch_gradient_norms(engine: Any) -> dict[str, float] | None:
    """Norm of the averaged gradient of every branch, before clipping; all ranks call it after the backward pass.

    Returns:
        Branch -> norm, the same on every rank and not finite where a gradient is not; None with an offloaded
        optimizer, whose gradients are elsewhere.
    """
    branches = {id(p): branch_of(name) for name, p in engine.module.named_parameters()}
    names = sorted(set(branches.values()))
    shares = list(_gradients(engine))
    sharded = engine.zero_optimization_stage() > 0
    squares = torch.zeros(len(names) + 1, device=engine.device)
    for parameter, gradient in shares:
        squares[names.index(branches[id(parameter)])] += torch.linalg.vector_norm(gradient.detach().float()).square()
    squares[-1] = float(bool(shares))
    if sharded and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(squares)
    if not float(squares[-1]):
        return None
    scale = float(getattr(engine.optimizer, "loss_scale", 1.0) or 1.0)
    return {name: float(square.sqrt()) / scale for name, square in zip(names, squares, strict=False)}


def _gradients(engine: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's (parameter, share of its gradient)."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        yield from ((p, p.grad) for p in engine.module.parameters() if p.grad is not None)
        return
    groups = optimizer.fp16_groups if stage == 3 else optimizer.params_in_partition
    for number, parameters in enumerate(groups):
        gradients = optimizer.averaged_gradients.get(number) or ()
        real = (g for g in gradients if not getattr(g, "_zero_padding", False))
        yield from zip(parameters, real, strict=False)
