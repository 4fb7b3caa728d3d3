"""The whole recipe of a chain of stages: one typed configuration out of the rooms' own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from mcjepa.data_prep.settings import PrepConfig
from mcjepa.data_prep.storage import absolute_location
from mcjepa.evals.settings import EvalConfig
from mcjepa.evals.study.settings import StudyConfig
from mcjepa.model.config import ModelConfig
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.files import PLACEHOLDER, apply_overrides, find_recipe, read_recipe, substitute, to_plain
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.settings.train import TrackingConfig, TrainConfig

TEXTS = ("name", "out", "data", "datasets")
"""Top-level texts that a recipe's strings may name."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a chain of stages needs; a stage reads its own part."""

    name: str
    """Name of the recipe; `${name}` in its strings."""
    out: str
    """Folder of all results; `${out}` in its strings."""
    data: str = ""
    """Root of your raw data; `${data}` in its strings."""
    datasets: str = ""
    """Folder or bucket of the shards, where several recipes share them; `${datasets}` in its strings."""
    prep: PrepConfig | None = None
    """Corpora to datasets."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The joint model."""
    train: TrainConfig | None = None
    """The training run."""
    eval: EvalConfig | None = None
    """The evaluation of the run's weights."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where MLflow keeps the runs."""
    sweep: dict[str, list[Any]] | None = None
    """Keys of this recipe and the values that they take in turn, e.g. {train.optimizer.encoder_lr: [1e-4, 3e-4]}:
    `mcjepa launch train` trains every combination in a folder of its own below `train.run`."""
    study: StudyConfig | None = None
    """Arms of this recipe that are trained from several seeds and compared: `mcjepa study`."""


def load_recipe(name: str, overrides: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """Reads, overrides, substitutes and validates a recipe.

    Returns:
        The typed recipe, and the same with every default spelled out as plain data.

    Raises:
        UsageError: anything in it is wrong; the message names the key and the nearest valid one.
    """
    path = find_recipe(name)
    content = apply_overrides(read_recipe(path), overrides)
    content.setdefault("name", path.stem)
    content.setdefault("out", f"outputs/{content['name']}")
    texts = _texts(content, f"recipe {path}")
    content = substitute(content | texts, texts)
    tracking = content.get("tracking")
    if isinstance(tracking, dict) and isinstance(tracking.get("uri"), str):
        content["tracking"] = {**tracking, "uri": without_credentials(tracking["uri"])}
    recipe = validate(Recipe, content, f"recipe {path}")
    return recipe, to_plain(recipe)


def _texts(content: dict[str, Any], origin: str) -> dict[str, str]:
    """The texts that strings may name, whichever of them name others, and places among them whole.

    Raises:
        UsageError: they name one another in a circle, or a text that is none of them; the name or `out` is empty.
    """
    for key in ("name", "out"):
        if content[key] in (None, ""):
            raise UsageError(f"{origin}: {key} is empty, expected a text; give it one, or leave the key out")
    texts = {key: str(content[key]) for key in TEXTS if content.get(key)}
    for _ in TEXTS:  # no chain of them is longer
        texts = {key: substitute(text, texts) for key, text in texts.items()}
    if circle := [key for key, text in texts.items() if PLACEHOLDER.search(text)]:
        said = ", ".join(f"{key}: {content[key]}" for key in circle)
        raise UsageError(f"{origin}: {said} go round in a circle, expected a text that names none; write one out")
    return {key: text if key == "name" else _absolute(text) for key, text in texts.items()}


def _absolute(location: str) -> str:
    if location.startswith("file://"):
        return f"file://{absolute_location(location.removeprefix('file://'))}"
    return absolute_location(location)


def without_credentials(uri: str) -> str:
    """An MLflow URI without user and password, which become MLflow's own variables of this process: a URI is written
    beside runs and jobs, printed, and kept in spools.

    Raises:
        UsageError: they are not those of an http server, which alone has such variables.
    """
    place = urlsplit(uri)
    if "@" not in place.netloc:
        return uri
    if place.scheme not in ("http", "https"):
        raise UsageError(
            f"tracking.uri names a user for {place.scheme}://{place.hostname}, expected none: it would be written "
            "beside every run; name a server (http, https) or sqlite:///FILE"
        )
    for name, value in (("USERNAME", place.username), ("PASSWORD", place.password)):
        if value:
            os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(value)
    return urlunsplit(place._replace(netloc=place.netloc.rpartition("@")[2]))


def required(part: Any, name: str, recipe: Recipe) -> Any:
    """A part of the recipe that a command needs.

    Raises:
        UsageError: the recipe has no such part.
    """
    if part is None:
        raise UsageError(f"recipe {recipe.name} has no `{name}` part, expected one; add it, or name another recipe")
    return part


def describe_keys(schema: dict[str, Any]) -> list[str]:
    """One line per key of a configuration's JSON schema: dotted name, default, meaning."""
    lines: list[str] = []

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, item in node.get("properties", {}).items():
            inner = next((c for c in item.get("anyOf", [item]) if "$ref" in c), item)
            meaning = " ".join(str(item.get("description", "")).split())
            if "$ref" in inner:
                lines.append(f"{prefix}{key}  {meaning}")
                walk(schema["$defs"][inner["$ref"].rsplit("/", 1)[1]], f"{prefix}{key}.")
                continue
            default = f" = {item['default']}" if "default" in item else ""
            lines.append(f"{prefix}{key}{default}  {meaning}")
            for container, mark in ((item.get("items"), "[]"), (item.get("additionalProperties"), "NAME")):
                if isinstance(container, dict) and "$ref" in container:
                    walk(schema["$defs"][container["$ref"].rsplit("/", 1)[1]], f"{prefix}{key}.{mark}.")

    walk(schema, "")
    return lines
