"""Weights in and out: a folder with `model.safetensors` and `config.json`, readable without the rest of mcjepa.

`config.json` holds {"format": 1, "model": {...}, "lineage": {...}}; lineage is free data about where the weights
come from. The weights' digest is the sha256 of the safetensors file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig
from model.mcjepa import MCJEPA

FORMAT = 1
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
Record = TypeVar("Record")


class WeightsError(ValueError):
    """A weights folder that is absent, incomplete, damaged or of another model."""


def save(
    state: Mapping[str, Tensor], config: ModelConfig, folder: Path, lineage: Mapping[str, Any] | None = None
) -> str:
    """Writes a weights folder.

    Args:
        state: the model's state dict.
        config: its configuration.
        folder: made if absent; files in it are replaced.
        lineage: where the weights come from (run, step, dataset ids).

    Returns:
        The weights' digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS_NAME}.partial"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, str(partial))
    partial.replace(folder / WEIGHTS_NAME)
    record = {"format": FORMAT, "model": dataclasses.asdict(config), "lineage": dict(lineage or {})}
    (folder / CONFIG_NAME).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return weights_digest(folder)


def weights_digest(folder: Path) -> str:
    """sha256 of the weights file, hexadecimal."""
    digest = hashlib.sha256()
    with (folder / WEIGHTS_NAME).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The model's configuration and lineage.

    Raises:
        WeightsError: the folder has no readable configuration.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise WeightsError(f"{folder} has no {CONFIG_NAME}, expected a weights folder such as RUN/weights/step-…")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise WeightsError(f"{path} has format {record['format']}, expected {FORMAT}; update mcjepa")
        return _build(ModelConfig, record["model"]), dict(record["lineage"])
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged ({error}); export the weights again") from error


def load(folder: str | Path) -> MCJEPA:
    """Builds the model of a weights folder, on the CPU and in evaluation mode.

    Raises:
        WeightsError: a file is absent or damaged, or the weights do not fit the configuration.
    """
    folder = Path(folder)
    config, _ = read_config(folder)
    model = MCJEPA(config)
    if not (folder / WEIGHTS_NAME).is_file():
        raise WeightsError(f"{folder} has no {WEIGHTS_NAME}; export the weights again")
    try:
        model.load_state_dict(load_file(str(folder / WEIGHTS_NAME)))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{folder / WEIGHTS_NAME} does not fit its {CONFIG_NAME}: {error}") from error
    return model.eval()


def _build(kind: type[Record], content: Mapping[str, Any]) -> Record:
    """A frozen dataclass from plain data; lists become tuples; unknown or missing names raise TypeError."""
    hints = get_type_hints(kind)
    if not isinstance(content, Mapping) or set(content) != set(hints):
        odd = sorted(set(content) ^ set(hints)) if isinstance(content, Mapping) else content
        raise TypeError(f"{kind.__name__}: unknown or missing {odd}")
    values = {}
    for name, value in content.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = _build(hint, value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
