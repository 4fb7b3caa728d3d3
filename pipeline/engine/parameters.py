"""The optimizer's parameter groups: encoder, expander and flow estimator, each with and without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

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
