"""Weights in and out: a folder with `model.safetensors` and `config.json`, readable without the rest of mcjepa.

`config.json` holds {"format": 1, "model": {...}, "lineage": {...}}; lineage is free data about where the weights
come from. The weights' digest is the sha256 of the safetensors file. A folder may hold the encoder alone
(tensors `encoder.…` only): `load_encoder` reads both kinds, `load` whole models. Weights that come with the package
(`shipped/`) are meant by their bare name, such as `nano`; a folder of that name is `./nano`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcjepa.model.config import ModelConfig
from mcjepa.model.encoder import Encoder
from mcjepa.model.mcjepa import MCJEPA

FORMAT = 1
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
SHIPPED = Path(__file__).with_name("shipped")
ENCODER = "encoder."
LATER_KEYS = {
    "FlowConfig": {"level_dropout", "finest_passes", "reconcile"},
    "LossConfig": {
        *("photometric_margin", "student_window", "student_size", "student_jitter", "student_exponent"),
        "student_where",
    },
}
"""Keys that weights of earlier versions lack; their defaults are what those had."""
Record = TypeVar("Record")
Module = TypeVar("Module", bound=nn.Module)


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
    described = folder / f".{CONFIG_NAME}.partial"  # last and at once: who waits for the folder sees it whole
    described.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    described.replace(folder / CONFIG_NAME)
    (folder / WEIGHTS_NAME).chmod((folder / CONFIG_NAME).stat().st_mode)  # safetensors makes files of one reader only
    return weights_digest(folder)


def weights_digest(folder: Path) -> str:
    """sha256 of a folder's weights file, hexadecimal."""
    return file_digest(folder / WEIGHTS_NAME)


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def shipped_names() -> list[str]:
    """Names of the weights that come with the package, sorted."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_NAME}"))


def weights_folder(weights: str | Path) -> Path:
    """The folder that is meant by a shipped name, a folder (a run's, an export, a hub's download) or its file.

    A name is text: a `Path` is always a path, and so is `./nano`.
    """
    if isinstance(weights, str) and weights in shipped_names():
        return SHIPPED / weights
    path = Path(weights)
    return path.parent if path.name == WEIGHTS_NAME else path


def load(weights: str | Path) -> MCJEPA:
    """Builds the model of some weights, on the CPU and in evaluation mode.

    Args:
        weights: the name of weights that come with the package (`nano`), a folder with `model.safetensors` and
            `config.json` (`RUN/weights/step-…`, what `mcjepa export` writes in either layout, a hub's download), or the
            `model.safetensors` in it.

    Raises:
        WeightsError: a file is absent or damaged, the weights do not fit the configuration, or they are of the encoder
            alone.

    Example:
        >>> import tempfile, torch, mcjepa
        >>> from mcjepa.model.config import EncoderConfig
        >>> model = MCJEPA(ModelConfig(encoder=EncoderConfig(size="nano")))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     digest = save(model.state_dict(), model.config, Path(folder))
        ...     loaded = mcjepa.load(folder)
        >>> frames = torch.rand(2, 1, 3, 64, 96)
        >>> tuple(loaded.estimate_flow(frames[0], frames[1]).shape)
        (1, 2, 64, 96)
    """
    folder = weights_folder(weights)
    config, _ = read_config(folder)
    state = read_state(folder)
    if is_encoder(state):
        raise WeightsError(f"{folder} holds the encoder alone, expected a whole model; use load_encoder")
    return _filled(MCJEPA(config), state, folder).eval()


def load_encoder(weights: str | Path) -> Encoder:
    """Builds the encoder of some weights, whole or exported with `--only encoder`, in evaluation mode.

    Args:
        weights: as `load`.

    Raises:
        WeightsError: as `load`.
    """
    folder = weights_folder(weights)
    config, _ = read_config(folder)
    state = encoder_part(read_state(folder))
    return _filled(Encoder(config.encoder), {n.removeprefix(ENCODER): t for n, t in state.items()}, folder).eval()


def is_encoder(names: Collection[str]) -> bool:
    """Whether a state dict's names are those of an encoder alone."""
    return bool(names) and all(name.startswith(ENCODER) for name in names)


def is_encoder_alone(folder: Path) -> bool:
    """Whether a weights folder holds the encoder alone.

    Raises:
        WeightsError: the file is absent or damaged.
    """
    return is_encoder(read_state(folder))


def encoder_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors of a model's state, under the same names."""
    return {name: tensor for name, tensor in state.items() if name.startswith(ENCODER)}


def read_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of a weights folder by name.

    Raises:
        WeightsError: the file is absent or damaged.
    """
    if not (folder / WEIGHTS_NAME).is_file():
        raise WeightsError(f"{folder} has no {WEIGHTS_NAME}; export the weights again")
    try:
        return load_file(str(folder / WEIGHTS_NAME))
    except SafetensorError as error:
        raise WeightsError(f"{folder / WEIGHTS_NAME} is damaged ({error}); export the weights again") from error


def _filled(module: Module, state: Mapping[str, Tensor], folder: Path) -> Module:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{folder / WEIGHTS_NAME} does not fit its {CONFIG_NAME}: {error}") from error
    return module


def _build(kind: type[Record], content: Mapping[str, Any]) -> Record:
    """A frozen dataclass from plain data; lists become tuples; unknown or missing names raise TypeError."""
    hints = get_type_hints(kind)
    if not isinstance(content, Mapping):
        raise TypeError(f"{kind.__name__}: {content}")
    if odd := sorted((set(content) ^ set(hints)) - (LATER_KEYS.get(kind.__name__, set()) - set(content))):
        raise TypeError(f"{kind.__name__}: unknown or missing {odd}")
    values = {}
    for name, value in content.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = _build(hint, value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
