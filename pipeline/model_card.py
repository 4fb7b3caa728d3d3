"""The README.md of weights that are shared: front matter for model hubs, and what a user asks first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from torch import Tensor

from mcjepa.model.config import ModelConfig

TAGS = ("self-supervised-learning", "optical-flow", "jepa", "vicreg", "mc-jepa")


def model_card(
    state: Mapping[str, Tensor], config: ModelConfig, lineage: Mapping[str, Any], digest: str, licence: str
) -> str:
    """The card's text.

    Args:
        state: the exported tensors.
        config: the model's configuration.
        lineage: what the weights' record says of where they come from.
        digest: sha256 of `model.safetensors`.
        licence: the Hub's identifier of the weights' licence.
    """
    whole = any(not name.startswith("encoder.") for name in state)
    front = yaml.safe_dump(
        {
            "license": licence,
            "library_name": "mcjepa",
            "pipeline_tag": "image-feature-extraction",
            "tags": list(TAGS if whole else (tag for tag in TAGS if tag != "optical-flow")),
        },
        sort_keys=False,
    )
    counts: dict[str, int] = {}
    for name, tensor in state.items():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + tensor.numel()
    return f"---\n{front}---\n{_body(config, counts, lineage, digest, whole)}"


def _body(config: ModelConfig, counts: Mapping[str, int], lineage: Mapping[str, Any], digest: str, whole: bool) -> str:
    encoder = config.encoder
    rows = "\n".join(f"| {name} | {count:,} |" for name, count in counts.items())
    origin = "\n".join(f"| {name} | `{_text(lineage[name])}` |" for name in sorted(lineage))
    what = "Encoder, flow estimator and expander" if whole else "The encoder"
    return f"""# MC-JEPA {"" if whole else "encoder "}weights

{what} of [MC-JEPA](https://arxiv.org/abs/2307.12698) (Bardes, Ponce, LeCun 2023), trained without labels by `mcjepa`,
an independent implementation. Images are RGB in [0, 1]; the ImageNet normalisation is inside.

```python
{_usage(whole)}
```

Six maps of strides 2 to 64 with {_text([*encoder.stem_channels, *encoder.stage_channels])} channels; stage depths
{_text(encoder.depths)}. `config.json` holds the whole configuration.

| part | values |
|---|---|
{rows}

## Where they come from
| | |
|---|---|
| sha256 of model.safetensors | `{digest}` |
{origin}

Scores belong to their protocol: `mcjepa eval all RECIPE --weights DIR` makes them, each with its card.
"""


def _usage(whole: bool) -> str:
    if not whole:
        return (
            "from mcjepa.model.pretrained import load_encoder  # needs torch, numpy and safetensors only\n"
            'encoder = load_encoder("FOLDER")\n'
            "pyramid = encoder(image_B3HW)  # six maps, finest first"
        )
    return (
        "from mcjepa.model.pretrained import load  # needs torch, numpy and safetensors only\n"
        'model = load("FOLDER")\n'
        "pyramid = model.forward_pyramid(image_B3HW)  # six maps, finest first\n"
        "embedding = model.forward_embedding(image_B3HW)\n"
        "flow_B2HW = model.estimate_flow(frame0_B3HW, frame1_B3HW)  # pixels, from frame 0 to frame 1"
    )


def _text(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else str(value)
