"""LayerNorm over the channels of a feature map.

Legend of shape suffixes in this room: B batch, C channel, H W image, h w feature map, D embedding, N samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm of each position's channel vector, (B, C, h, w) to (B, C, h, w), eps 1e-6 as ConvNeXt's.

    In channels-last memory the permuted view is contiguous and one fused kernel does it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises over dimension 1."""
        last = x.permute(0, 2, 3, 1)
        with torch.autocast(x.device.type, enabled=False):
            out = F.layer_norm(last.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return out.to(x.dtype).permute(0, 3, 1, 2)
