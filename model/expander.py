"""The expander of the content branch: linear layers with a normalisation and ReLU between (method section 1.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcjepa.model.config import ExpanderConfig
from mcjepa.model.reduction import global_moments, world_size


class GlobalBatchNorm(nn.Module):
    """Batch normalisation of (N, D) over the rows of all ranks, on any device (SyncBatchNorm refuses CPUs).

    In evaluation it uses the running statistics, as torch's does.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) to (N, D), computed in fp32 and returned in the input's type, as the half weights of an fp16 engine
        need it."""
        x = x_ND.float()
        if not self.training:
            normal = (x - self.running_mean) * torch.rsqrt(self.running_var + self.eps)
            return (normal * self.weight + self.bias).to(x_ND.dtype)
        rows = x.shape[0] * world_size()
        if rows < 2:
            raise ValueError("the expander's batch norm got one sample in all, expected at least 2: raise view_batch")
        mean, var = global_moments(x)
        with torch.no_grad():
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * rows / (rows - 1)).detach().to(self.running_var.dtype), self.momentum)
        return ((x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias).to(x_ND.dtype)


class Expander(nn.Sequential):
    """Embedding (N, D_in) to expanded embedding (N, widths[-1])."""

    def __init__(self, config: ExpanderConfig, inputs: int) -> None:
        layers: list[nn.Module] = []
        for width in config.widths[:-1]:
            norm: nn.Module = GlobalBatchNorm(width) if config.norm == "batch" else nn.LayerNorm(width)
            layers += [nn.Linear(inputs, width), norm, nn.ReLU()]
            inputs = width
        layers.append(nn.Linear(inputs, config.widths[-1], bias=False))
        super().__init__(*layers)
