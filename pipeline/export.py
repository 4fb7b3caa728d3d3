"""Which weights an export means: a weights folder, the newest of a run, or a checkpoint put together again.

    WEIGHTS                       any folder with model.safetensors and config.json
    RUN                           its newest complete checkpoint
    RUN/checkpoints/step-…        that checkpoint

The weights folder of the same step is taken for a checkpoint when its digest is the one that the checkpoint's manifest
names; otherwise the checkpoint's own pieces are put together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mcjepa.data_prep.storage import atomic_write, open_store
from mcjepa.model import pretrained
from mcjepa.model.config import ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.pipeline.checkpoint import Checkpoint, complete_checkpoints, newest_weights, read_parameters, step_name
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.run.folder import CHECKPOINTS, PART_OF, RECIPE, WEIGHTS, read_run_record

log = logging.getLogger(__name__)
CARD_NAME = "README.md"
TAGS = ("self-supervised-learning", "optical-flow", "jepa", "vicreg", "mc-jepa")


@dataclass(frozen=True)
class Exportable:
    """Weights with what is known of them."""

    state: Mapping[str, Tensor]
    config: ModelConfig
    lineage: Mapping[str, Any]
    source: str
    """`weights` or `checkpoint`: what was read."""
    place: Path
    digest: str
    """sha256 of them as the run wrote them."""


def export_weights(checkpoint: Path, out: Path, encoder_only: bool, licence: str | None) -> dict[str, Any]:
    """Writes a checkpoint's weights as a folder that needs nothing of the run.

    Args:
        checkpoint: what `find_weights` reads.
        out: a new folder, or one that was exported before.
        encoder_only: whether the flow estimator and the expander are left out.
        licence: of the weights, for the README.md that model hubs read; None: without that file.

    Returns:
        Folder, digest, source and lineage of the weights.

    Raises:
        UsageError: the folder holds anything else, or there are no weights.
    """
    _check_out(out, checkpoint)
    found = find_weights(checkpoint)
    state = pretrained.encoder_part(found.state) if encoder_only else found.state
    lineage = {PART_OF: found.digest, **found.lineage} if encoder_only else found.lineage
    digest = pretrained.save(state, found.config, out, lineage)
    if licence is not None:
        card = model_card(state, found.config, lineage, digest, licence)
        atomic_write(out / CARD_NAME, card.encode())
    record = {"weights": str(out), "sha256": digest, "source": found.source, "from": str(found.place)}
    return {**record, "tensors": len(state), "lineage": dict(lineage)}


def _check_out(out: Path, source: Path) -> None:
    """Refuses a folder that holds anything else, what is to be exported, and any of a run's own weights."""
    own = {pretrained.WEIGHTS_NAME, pretrained.CONFIG_NAME, CARD_NAME}
    if out.resolve() == source.resolve():
        raise UsageError(f"--out is {out}, the exported folder itself; expected another; choose a new one")
    above = out.resolve().parent
    if above.name == WEIGHTS and (above.parent / RECIPE).is_file():
        raise UsageError(
            f"--out is {out}, among the weights that a run keeps; expected another folder; choose a new one"
        )
    if out.is_dir():
        odd = sorted({path.name for path in out.iterdir()} - own)
        if odd:
            raise UsageError(f"--out {out} holds {odd[0]!r}, expected a new or an exported folder; choose another")
    elif out.exists():
        raise UsageError(f"--out {out} is a file, expected a folder; choose another")


def find_weights(place: Path) -> Exportable:
    """Reads the weights that `place` means.

    Raises:
        UsageError: there are none, or they are damaged.
        DataError: a checkpoint that cannot be read.
    """
    if not place.is_dir():
        raise UsageError(f"no folder {place}, expected a run, one of its checkpoints, or a weights folder")
    if (place / pretrained.CONFIG_NAME).is_file():
        return _from_weights(place)
    run = place.parent.parent if place.parent.name == CHECKPOINTS else place
    found = [c for c in complete_checkpoints(run) if place == run or step_name(c.step) == place.name]
    if found:
        beside = run / WEIGHTS / step_name(found[0].step)
        return _from_weights(beside) if _agree(beside, found[0]) else _from_checkpoint(found[0], run)
    newest = newest_weights(run) if place == run else None
    if newest is None:
        raise UsageError(
            f"{place} holds neither a complete checkpoint nor weights, expected a run, one of its checkpoints "
            "(RUN/checkpoints/step-…), or a weights folder; `mcjepa -v export` says what is wrong with a checkpoint"
        )
    return _from_weights(newest)


def _from_weights(folder: Path) -> Exportable:
    try:
        config, lineage = pretrained.read_config(folder)
        digest = pretrained.weights_digest(folder)
        return Exportable(pretrained.read_state(folder), config, lineage, "weights", folder, digest)
    except pretrained.WeightsError as error:
        raise UsageError(str(error)) from error


def _agree(folder: Path, checkpoint: Checkpoint) -> bool:
    """Whether a weights folder is whole and holds the very weights that the checkpoint's manifest names."""
    try:
        pretrained.read_config(folder)
        found = pretrained.weights_digest(folder)
    except (pretrained.WeightsError, OSError) as error:
        log.info("the checkpoint itself is read: %s", error)
        return False
    expected = checkpoint.record["weights_sha256"]
    if found != expected:
        log.warning("%s has sha256 %s, %s names %s; the checkpoint is read", folder, found, checkpoint.name, expected)
    return bool(found == expected)


def _from_checkpoint(checkpoint: Checkpoint, run: Path) -> Exportable:
    state, config = read_parameters(open_store(str(run)), checkpoint), _model_config(run)
    model = MCJEPA(config)
    kept_only = {name for name, _ in model.named_buffers()} - set(model.state_dict())  # constants, not in weights
    state = {name: tensor for name, tensor in state.items() if name not in kept_only}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"checkpoint {checkpoint.name} does not fit {run / RECIPE}: {error}") from error
    known = read_run_record(run)
    lineage = {"run_id": known.get("run_id", ""), "run": run.name, "step": checkpoint.step}
    lineage["dataset_ids"] = checkpoint.record["facts"]["dataset_ids"]
    if known.get("init_from"):
        lineage["init_from"] = known["init_from"]["sha256"]
    digest = str(checkpoint.record["weights_sha256"])
    return Exportable(state, config, lineage, "checkpoint", run / checkpoint.key, digest)


def _model_config(run: Path) -> ModelConfig:
    path = run / RECIPE
    if not path.is_file():
        raise UsageError(f"{run} has no {RECIPE}, expected the one that the run wrote; restore it")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return validate(ModelConfig, content["model"], f"{path}, model")


def model_card(
    state: Mapping[str, Tensor], config: ModelConfig, lineage: Mapping[str, Any], digest: str, licence: str
) -> str:
    """The README.md of shared weights: front matter for model hubs, and what a user asks first.

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
    start = "import mcjepa  # loading needs torch, numpy and safetensors, not transformers\n\n"
    if not whole:
        return (
            f'{start}encoder = mcjepa.load_encoder("FOLDER")  # this folder\n'
            "pyramid = encoder(image_B3HW)  # six maps, finest first"
        )
    return (
        f'{start}model = mcjepa.load("FOLDER")  # this folder\n'
        "pyramid = model.forward_pyramid(image_B3HW)  # six maps, finest first\n"
        "embedding = model.forward_embedding(image_B3HW)\n"
        "flow_B2HW = model.estimate_flow(frame0_B3HW, frame1_B3HW)  # pixels, from frame 0 to frame 1"
    )


def _text(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else str(value)
